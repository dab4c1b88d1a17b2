"""Votes on two answers: how a file of them is read, whoever cast them (people or a judge).

One JSON object a line, in the order in which the votes were cast::

    {"a": "model-1", "b": "model-2", "winner": "a", "task": "17"}

``winner`` is "a", "b" or "tie". Votes with the same ``task`` are on the same question, and are
resampled together; a vote without one stands alone. Other keys are the voter's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError

SIDES = {"a": 1.0, "tie": 0.5, "b": 0.0}  # what a takes of one vote


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote."""

    a: str
    b: str
    winner: str
    task: str | None = None

    @property
    def taken(self) -> float:
        """What ``a`` took: 1, 0, or 1/2 for a tie."""
        return SIDES[self.winner]


def read_votes(path: Path) -> list[Ballot]:
    """Every vote of a file. Raises UsageError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the votes in {path} cannot be read: {error}") from None
    votes = [_ballot(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not votes:
        raise UsageError(f"{path} holds no vote")
    return votes


def _ballot(line: str, where: str) -> Ballot:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    a, b = (row.get("a"), row.get("b")) if isinstance(row, dict) else (None, None)
    if not (isinstance(a, str) and a and isinstance(b, str) and b):
        raise UsageError(f"{where}: a vote has the models a and b, and winner; got {line[:100]!r}")
    if a == b:
        raise UsageError(f"{where}: {a!r} cannot be compared with itself")
    if row.get("winner") not in SIDES:
        raise UsageError(f"{where}: winner is a, b or tie, got {row.get('winner')!r}")
    task = row.get("task")
    return Ballot(a, b, row["winner"], None if task is None else str(task))
