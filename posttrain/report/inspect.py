"""Rollouts in the terminal: whole conversations of one step, the best or worst of them first.

What a model wrote is printed as text: markup in it is not followed, and control characters, which
could move the cursor or change the terminal, are shown as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from posttrain.errors import UsageError
from posttrain.report.rollouts import message_text
from posttrain.storage.rollout_files import RolloutFiles
from posttrain.storage.run_dir import RunDir
from posttrain.types import Group, Rollout
from rewards import Outcome

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS = {"correct": "green", "wrong": "red", "unparseable": "yellow"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rollouts; ``step`` None is the last one, ``order`` "" the order they were made in."""

    step: int | None = None
    order: str = ""
    count: int = 5
    outcome: str = ""
    task: str = ""


def inspect(path: Path, wanted: Wanted, stream: TextIO | None = None) -> int:
    """Print the wanted rollouts. Raises UsageError when there are none, saying what there is."""
    from rich.console import Console

    files = RunDir.open(path).rollouts
    step, groups = _step(files, wanted.step, path)
    every = [(group, rollout) for group in groups for rollout in group.rollouts]
    fitting = _chosen(every, wanted)
    if not fitting:
        raise UsageError(f"no rollout of step {step} fits: {_what_there_is(every)}")
    console = Console(file=stream, highlight=False)
    for group, rollout in fitting[: wanted.count]:
        _show(console, group, rollout)
    left = len(fitting) - wanted.count
    if left > 0:
        console.print(f"{left} more of step {step} fit", style="dim")
    return 0


def _step(files: RolloutFiles, step: int | None, path: Path) -> tuple[int, list[Group]]:
    known = sorted({*files.sealed_steps(), *files.partial_steps()})
    if not known:
        raise UsageError(f"{path} holds no rollouts yet")
    step = known[-1] if step is None else step
    if step not in known:
        raise UsageError(f"{path} has no rollouts of step {step}: {_ranges(known)}")
    try:
        groups = files.load_step(step)
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise UsageError(f"the rollouts of step {step} can't be read: {error}") from error
    return step, list(files.load_partial(step).values()) if groups is None else groups


def _ranges(steps: Sequence[int]) -> str:
    return f"it has {len(steps)}, from {steps[0]} to {steps[-1]}"


def _chosen(
    every: Sequence[tuple[Group, Rollout]], wanted: Wanted
) -> Sequence[tuple[Group, Rollout]]:
    """Fitting ones in the wanted order; those without a value come last in any order by value."""
    if wanted.outcome and wanted.outcome not in set(Outcome):
        raise UsageError(f"no outcome {wanted.outcome!r}; there are: {', '.join(Outcome)}")
    fitting = [
        (group, rollout)
        for group, rollout in every
        if wanted.outcome in ("", rollout.score.outcome) and wanted.task in ("", rollout.task_id)
    ]
    if not wanted.order:
        return fitting
    sign = -1 if wanted.order == "best" else 1

    def key(pair: tuple[Group, Rollout]) -> tuple[bool, float]:
        value = pair[1].score.value
        return value is None, 0.0 if value is None else sign * value

    return sorted(fitting, key=key)


def _what_there_is(every: Sequence[tuple[Group, Rollout]]) -> str:
    outcomes = sorted({str(rollout.score.outcome) for _, rollout in every})
    tasks = sorted({rollout.task_id for _, rollout in every})
    shown = ", ".join(tasks[:8]) + (", ..." if len(tasks) > 8 else "")
    return f"its outcomes are {', '.join(outcomes)}; its tasks {shown}"


def _show(console: Console, group: Group, rollout: Rollout) -> None:
    from rich.text import Text

    score = rollout.score
    value = "not judged" if score.value is None else f"{score.value:.3f}"
    where = f"step {group.step}, prompt {group.prompt_index}, sample {rollout.sample_index}"
    colour = _COLOURS.get(score.outcome, "magenta")
    console.rule(Text.assemble(where, "  ", (f"{value} {score.outcome}", f"bold {colour}")))
    facts = [f"task {rollout.task_id}", f"{rollout.n_completion_tokens} tokens"]
    facts += [f"ended: {rollout.end_reason}"]
    facts += [f"{name} {part:.3f}" for name, part in score.parts.items()]
    others = ["–" if other is None else f"{other:.2f}" for other in group.values]
    console.print(Text(printable(", ".join(facts)), "dim"))
    console.print(Text(f"its group: {' '.join(others)}", "dim"))
    if score.detail:
        console.print(Text(printable(score.detail), "dim"))
    for message in rollout.messages:
        role = str(message.get("role", "?"))
        console.print(Text(printable(role), "bold cyan" if role == "assistant" else "bold"))
        console.print(Text(printable(message_text(message))), soft_wrap=True)
    console.print()


def printable(text: str) -> str:
    """``text`` with every character that a terminal might obey as an escape."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
