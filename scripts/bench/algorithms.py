"""Does every preset learn? Accuracy on the quickstart's held-out problems, before and after.

The same checkpoint, prompts, sampling and learning rate for all: a yardstick for the code, not a
ranking of the algorithms, each of which would like a rate of its own.

    python scripts/bench/algorithms.py --model runs/quickstart/sft --steps 60
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import envs
import posttrain
from posttrain.presets import PRESETS

ENV: dict[str, Any] = dict(min_terms=4, max_terms=6, min_digits=1, max_digits=1, seed=0)
# What a task must add to a preset, with the reason.
EXTRA: dict[str, dict[str, Any]] = {
    # Three of four samples are wrong at first: keep the right ones, the shortest four.
    "expert_iteration": {"advantage": {"name": "rejection", "threshold": 1.0, "keep": 4}},
    # The critic starts at 0 and has 60 steps: a higher rate, and a few steps alone.
    "ppo": {"advantage": {"name": "gae", "lam": 1.0, "critic_rate": 5.0, "critic_warmup": 5}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=500, help="held-out problems")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=sorted(PRESETS.keys() - {"distill"}))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="algorithms-") as folder:
        for name in options.only:
            row = measure(name, options, Path(folder) / name)
            print(json.dumps(row), flush=True)


def measure(name: str, options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """One run; accuracy as a share of the held-out problems."""
    started = time.perf_counter()
    run = posttrain.grpo(
        model=options.model,
        env=envs.load("reasoning_gym:chain_sum", **ENV),
        algorithm={"preset": name, **EXTRA.get(name, {})},
        rollout={"engine": options.engine, "request_timeout_s": 600.0},
        learner={"learning_rate": 1e-4},
        evaluation={"tasks": options.tasks},
        steps=options.steps,
        prompts_per_step=16,
        group_size=8,
        seed=options.seed,
        run_dir=run_dir,
        quiet=True,
    )
    summary = run.summary
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return {
        "preset": name,
        "accuracy_before": summary["accuracy_before"],
        "accuracy_after": summary["accuracy_after"],
        "points": round(100 * (summary["accuracy_after"] - summary["accuracy_before"]), 1),
        "steps": options.steps,
        "engine": summary["engine"],
    }


if __name__ == "__main__":
    main()
