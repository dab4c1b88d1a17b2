"""``pretrain plan``: what a budget buys, and what a model costs. Writes nothing.

Decides how the questions hang together. A budget (``--flops``, ``--gpu-hours``) gives a size and
its tokens by each law; a size and tokens (``--parameters``, ``--tokens``) give a budget. Speed and
price turn FLOP into time and money; ``--model`` and a layout give the memory of a rank; ``--runs``
adds the user's own laws beside the published ones.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

EXAMPLES = """\
examples:
  pretrain plan --flops 1e21
  pretrain plan --flops 1e18 --runs runs.jsonl --inference-tokens 1e10
  pretrain plan --parameters 405e9 --tokens 15.6e12 --gpus 16000 --tflops 400 --price 2.5
  pretrain plan --gpu-hours 5000 --gpu h100 --mfu 0.4 --gpus 64
  pretrain plan --model MODEL/config.json --tokens 1e12 --gpus 64 --tensor 8 --zero 1 --rows 2
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The arguments of ``pretrain plan``."""
    parser = commands.add_parser(
        "plan",
        help="size, tokens, rate, memory, time and money of a training",
        description="What a budget buys and what a model costs. Writes nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train: a budget, or a size with its tokens")
    what.add_argument("--flops", type=float, help="training budget in FLOP")
    what.add_argument("--gpu-hours", type=float, help="the budget in GPU hours")
    what.add_argument("--parameters", type=float)
    what.add_argument("--tokens", type=float)
    what.add_argument("--model", help="config.json of a decoder, or its folder")
    what.add_argument("--inference-tokens", type=float, help="expected over the model's life")
    what.add_argument("--runs", help="JSONL of your own runs: parameters, tokens, loss")
    what.add_argument(
        "--mup-from",
        type=float,
        nargs=2,
        metavar=("RATE", "WIDTH"),
        help="carry a rate to --model's width by muP's rule",
    )
    _add_speed(parser.add_argument_group("speed and price"))
    _add_layout(parser.add_argument_group("memory of a rank (with --model)"))
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run)


def _add_speed(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gpus", type=int, default=1)
    group.add_argument("--gpu", default="h100", choices=("a100", "b200", "h100", "h200"))
    speed = group.add_mutually_exclusive_group()
    speed.add_argument("--mfu", type=float, help="share of the GPU's peak (0.4)")
    speed.add_argument("--tflops", type=float, help="measured TFLOP/s of one GPU")
    speed.add_argument("--tokens-per-second", type=float, help="measured, of one GPU, this size")
    group.add_argument("--price", type=float, default=0.0, help="of a GPU hour")
    group.add_argument("--watts", type=float, help="of a GPU (its power limit)")
    group.add_argument("--pue", type=float, default=1.1, help="power of the site over its GPUs'")
    group.add_argument("--grid", type=float, default=0.385, help="kg CO2e per kWh")
    group.add_argument("--goodput", type=float, default=1.0, help="share of the time that trains")


def _add_layout(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--zero", type=int, default=1, choices=(0, 1, 2, 3))
    group.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    group.add_argument("--sequence-parallel", action="store_true", help="norms over tensor ranks")
    group.add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    group.add_argument("--context", type=int, default=1, help="ranks that share a row's tokens")
    group.add_argument("--rows", type=int, default=1, help="of a micro-batch")
    group.add_argument("--row-tokens", type=int, default=4096)
    group.add_argument("--recompute", default="selective", choices=("none", "selective", "full"))


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    from pretrain.planning.plan import make_plan
    from pretrain.planning.text import render

    plan: dict[str, Any] = make_plan(options)
    print(json.dumps(plan, indent=1) if options.json else render(plan))
    return 0
