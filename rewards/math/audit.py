"""Decides how often the verifier agrees with labelled pairs: ``posttrain audit math FILE...``.

A row has ``gold``, ``pred`` and the label ``equal`` or ``expected``; a ``note`` that begins with
SOFT says that either verdict will do. Both sides are read as labelled answers (``bare=True``). A
gold that is refused (it is empty) matches nothing. A row that could not be decided agrees with no
label.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.math.scoring import score, workers
from rewards.score import Score

SHOWN_CHARS = 200


def audit(files: Iterable[str | Path], *, show: bool = False) -> dict[str, Any]:
    """Score every row of the files, one after the other; ``show`` writes each miss to stderr.

    ``slowest_s`` is the longest row, ``pairs_per_s`` does not count the start of the workers.
    Raises UsageError for a file that cannot be read, with its line.
    """
    rows = [row for file in files for row in read_rows(Path(file))]
    if not rows:
        raise UsageError("no rows to audit: name at least one JSON Lines file with gold and pred")
    workers().start()
    tally = {"false_positives": 0, "false_negatives": 0, "undecided": 0}
    right, times = 0, []
    for where, row in rows:
        started = time.perf_counter()
        judged = _judged(row)
        times.append(time.perf_counter() - started)
        miss = _miss(row, judged)
        if miss is None:
            right += 1
            continue
        tally[miss] += 1
        if show:
            _show(where, row, miss, judged)
    return {
        "cases": len(rows),
        "accuracy": round(right / len(rows), 4),
        **tally,
        "slowest_s": round(max(times), 4),
        "pairs_per_s": round(len(rows) / sum(times), 1),
    }


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a JSON Lines file. Raises UsageError naming the line that is wrong."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: not a line of JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(
                f"{where}: a row is an object with gold, pred and equal, not {row!r:.60}"
            )
        for name in ("gold", "pred"):
            if not isinstance(row.get(name), str):
                raise UsageError(f"{where}: no text {name!r}.{did_you_mean(name, row)}")
        if not isinstance(row.get("equal", row.get("expected")), bool | int):
            raise UsageError(f"{where}: no label: 'equal' or 'expected', true or false")
        yield where, row


def _judged(row: Mapping[str, Any]) -> Score | None:
    """The score of a row, or None for a gold that was refused."""
    try:
        return score(row["pred"], row["gold"], bare=True)
    except UsageError:
        return None


def _miss(row: Mapping[str, Any], judged: Score | None) -> str | None:
    """What kind of disagreement this is with the label, or None."""
    if str(row.get("note", "")).startswith("SOFT"):
        return None
    if judged is not None and judged.value is None:
        return "undecided"
    accepted = judged is not None and judged.value == 1.0
    if accepted == bool(row.get("equal", row.get("expected"))):
        return None
    return "false_positives" if accepted else "false_negatives"


def _show(where: str, row: Mapping[str, Any], miss: str, judged: Score | None) -> None:
    detail = "the gold answer was refused" if judged is None else judged.detail
    shown = {name: row[name][-SHOWN_CHARS:] for name in ("gold", "pred")}
    print(f"{where}: {miss}: {shown} ({detail})", file=sys.stderr)
