"""Decides what a training run is to a fit: one line of JSON with its size, tokens and final loss.

    {"parameters": 193152, "tokens": 500000, "loss": 2.61, "learning_rate": 0.004}

``learning_rate`` is optional, and other keys are the writer's own. A last line without its line
break is a run that was being written when its writer died: it is left out, not an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import UsageError


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. ``loss`` in nats per token, on text that was not trained on."""

    parameters: float
    tokens: float
    loss: float
    learning_rate: float | None = None

    @property
    def flops(self) -> float:
        """C = 6 N D: forward and backward pass, attention's own products left out (Kaplan 2020)."""
        return 6.0 * self.parameters * self.tokens


def read_runs(path: str | Path) -> list[Run]:
    """Every run of a JSONL file. Raises UsageError that names the line and what is wrong in it."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the runs in {path}: {error}") from error
    *whole, torn = text.split("\n")
    runs = [_run(line, f"{path}, line {i}") for i, line in enumerate(whole, 1) if line.strip()]
    if torn.strip():
        runs += _last(torn, f"{path}, line {len(whole) + 1}")
    return runs


def tuned(runs: Iterable[Run]) -> list[Run]:
    """Of each size and number of tokens the run with the least loss: other rates spoil a law."""
    best: dict[tuple[float, float], Run] = {}
    for run in runs:
        key = (run.parameters, run.tokens)
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    return list(best.values())


def _last(line: str, where: str) -> list[Run]:
    try:
        json.loads(line)
    except ValueError:
        return []
    return [_run(line, where)]  # whole, but written without a line break


def _run(line: str, where: str) -> Run:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {line[:60]!r}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not an object with parameters, tokens and loss")
    rate = _number(row, "learning_rate", where) if row.get("learning_rate") is not None else None
    size, tokens, loss = (_number(row, name, where) for name in ("parameters", "tokens", "loss"))
    return Run(size, tokens, loss, rate)


def _number(row: dict[str, object], name: str, where: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: {name} is {value!r}, but it must be a number above 0")
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{where}: {name} is {value}, but it must be finite and above 0")
    return float(value)
