"""Several runs beside each other: names that tell them apart, headline numbers, other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError
from posttrain.report import headline
from posttrain.report.history import History, leaves, plain

Row = tuple[str, ...]
MOST = 8  # runs: as many as there are colours
_OWN = ("run_dir",)  # settings that differ in any case


def names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ.

    Raises UsageError for the same run twice, and for more than MOST.
    """
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError("the same run is given twice; each run is compared with the others")
    if len(paths) > MOST:
        raise UsageError(f"{len(paths)} runs are too many to tell apart: at most {MOST}")
    for n in range(1, max(len(path.parts) for path in paths) + 1):
        ends = ["/".join(path.parts[-n:]) for path in paths]
        if len(set(ends)) == len(ends):
            break
    return ends


def numbers(runs: Mapping[str, History]) -> list[Row]:
    """Rows of the table: each headline number with what is said of it, run by run."""
    told = {name: {c.title: f"{c.value} ({c.text})" for c in headline.cards(history)}
            for name, history in runs.items()}  # fmt: skip
    titles = dict.fromkeys(title for cards in told.values() for title in cards)
    states = ("State", *(headline.state(history)[0] for history in runs.values()))
    return [states, *((title, *(cards.get(title, "") for cards in told.values()))
                      for title in titles)]  # fmt: skip


def differences(runs: Mapping[str, History]) -> list[Row]:
    """Settings, versions and seeds that are not the same in all runs."""
    trees = [dict(_facts(history.manifest)) for history in runs.values()]
    known = dict.fromkeys(name for tree in trees for name in tree)
    rows = [(name, *(plain(tree.get(name, "")) for tree in trees)) for name in known]
    return [row for row in rows if len(set(row[1:])) > 1]


def _facts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((n, v) for n, v in leaves(manifest.get("config") or {}) if n not in _OWN)
    for kind in ("versions", "platform", "environment"):
        yield from ((f"{kind}: {n}", v) for n, v in (manifest.get(kind) or {}).items())
