"""How ``posttrain plan`` reads on a terminal; ``--json`` prints what it is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.planning.plan import Wishes, make_plan

_WIDTH = 18


def show_plan(path: str | None, overrides: Sequence[str], wishes: Wishes, *, as_json: bool) -> int:
    """Print the plan."""
    plan = make_plan(path, overrides, wishes)
    print(json.dumps(plan) if as_json else render(plan))
    return 0


def render(plan: Mapping[str, Any]) -> str:
    """Lines for a person."""
    lines = [*_batch(plan), *_learner(plan["learner"]), *_engine(plan), *_time(plan)]
    return "\n".join(f"{name:{_WIDTH}}{text}".rstrip() for name, text in lines)


def _batch(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    b = plan["batch"]
    more = b["episodes"] - b["samples"]
    greedy = f", and {more} greedy episodes" if more else ""
    return [
        ("model", f"{plan['model']}, {_parameters(plan)}"),
        (
            "samples per step",
            f"{b['samples']} = {b['prompts']} prompts x {b['group_size']}{greedy}",
        ),
        (
            "tokens",
            f"prompts {b['prompt_tokens_mean']:.0f} on average, {b['prompt_tokens_max']} at most; "
            f"answers {b['answer_tokens']}",
        ),
        (
            "tokens per step",
            f"{b['tokens_per_step']:,}, of them {b['loss_tokens_per_step']:,} with a loss",
        ),
        (
            "packed rows",
            f"{b['rows_per_rank']} for each of {b['ranks']} ranks, up to "
            f"{b['tokens_per_row']:,} tokens each",
        ),
    ]


def _parameters(plan: Mapping[str, Any]) -> str:
    total, active = plan["parameters"], plan["active_parameters"]
    of_these = f", {active / 1e6:,.1f} M of them used by a token" if active < total else ""
    return f"{total / 1e6:,.1f} M parameters{of_these}"


def _learner(learner: Mapping[str, Any]) -> list[tuple[str, str]]:
    row, on, size = learner["row"], learner["checkpointing"], learner["sequence_parallel"]
    otherwise = _size(learner["activations_otherwise"])
    shared = f" shared by {size} ranks" if size > 1 else ""
    notes = {
        "activations": f"for {row['tokens']:,} tokens{shared}; {otherwise} "
        f"{'without' if on else 'with'} gradient checkpointing",
        "logits": f"{row['chunk']} tokens at once",
        "frozen weights": "without gradients",
        "passing": "buffers that gradients go through",
        "runtime": "Python and its libraries",
    }
    lines = [
        ("memory per rank", f"{_size(learner['total'])}, formula in posttrain/learner/memory.py")
    ]
    for name, n in learner["memory"].items():
        if n:
            note = f"   {notes[name]}" if name in notes else ""
            lines.append((f"  {name}", f"{_size(n):>10}{note}"))
    if learner["host"]:
        lines.append(("  on the host", f"{_size(learner['host']):>10}   offloaded"))
    copy = f"{_size(learner['checkpoint_copy'])} more of the host's memory while it is written"
    lines.append(("a checkpoint", copy))
    return lines


def _engine(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    engine = plan["engine"]
    which = f"{engine['servers']} vLLM server(s)" if engine["servers"] else "the embedded engine"
    fit = (
        f"{_size(engine['kv_cache'])}, {engine['kv_bytes_per_token']:,} bytes a token: holds "
        f"{engine['sequences_that_fit']:,} sequences of {engine['sequence_tokens']:,} tokens"
    )
    times = f", read by each of {engine['servers']}" if engine["servers"] > 1 else ""
    return [
        ("engine", f"{which}, weights {_size(engine['weights'])}"),
        ("KV cache", fit),
        ("weight sync", f"{_size(plan['sync_bytes'])} a step{times}"),
    ]


def _time(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    time = plan["time"]
    how = "at once" if time["overlap"] else "in turn"
    lines = [
        (
            "time per step",
            f"{_seconds(time['step_s'])}: training {_seconds(time['train_s'])}, generation "
            f"{_seconds(time['generation_s'])}, {how}",
        ),
        ("", time["how"]),
    ]
    if time["rank_peak_bytes"]:
        lines.append(("", f"the rank held {_size(time['rank_peak_bytes'])} after its step"))
    lines.append(("time", f"{_seconds(time['run_s'])} for {time['steps']} steps, no evaluation"))
    if (cost := plan["cost"]) is not None:
        lines.append(
            (
                "cost",
                f"{cost['total']:,.2f} = {cost['hours']:.2f} h x {cost['gpus']} GPUs x "
                f"{cost['price']:g}",
            )
        )
    return lines


def _size(n: float) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def _seconds(s: float) -> str:
    if s < 120:
        return f"{s:.2f} s"
    return f"{s / 60:.1f} min" if s < 7200 else f"{s / 3600:.1f} h"
