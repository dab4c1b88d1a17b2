"""Forgetting: benchmarks whose score fell below the best that the same run had on the same items.

The last score of each benchmark is compared with the best before it, item by item, by the paired
test of ``posttrain compare`` (``statistics.paired_test``). A fall counts when that test's p-value
is below LEVEL. The level is low because the best of many scores is so by luck in part, and a fall
that stays is compared again at every evaluation; scripts/bench/forgetting.py has how often the
alarm is wrong, and what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.evaluation.statistics import PairedResult, paired_test

LEVEL = 0.002

Record = Mapping[str, Any]  # of kind "benchmark" in metrics.jsonl


@dataclass(frozen=True, slots=True)
class Fall:
    """From the best score, after ``start`` steps, to the last one, after ``end`` steps."""

    benchmark: str
    start: int
    end: int
    before: float  # accuracy, over the items that were judged both times
    after: float
    test: PairedResult  # of after - before

    @property
    def text(self) -> str:
        """For people."""
        points = [100 * x for x in (self.test.difference, self.test.low, self.test.high)]
        return (
            f"Forgotten? {self.benchmark} falls from {self.before:.1%} after step {self.start} to "
            f"{self.after:.1%} after step {self.end}: {points[0]:+.1f} points "
            f"[{points[1]:+.1f}, {points[2]:+.1f}], p = {self.test.p_value:.2g}, on the same "
            f"{self.test.n_tasks} items. Lower the learning rate, raise the KL, or go back to a "
            "checkpoint from before."
        )


def curves(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Benchmark -> its records by step; of one step the last record holds."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(str(record.get("benchmark")), {})[int(record["step"])] = record
    return {name: [by_step[step] for step in sorted(by_step)] for name, by_step in found.items()}


def falls(by_benchmark: Mapping[str, Sequence[Record]]) -> list[Fall]:
    """The benchmarks whose last score is significantly below their best; ``curves`` orders them."""
    found = (_fall(name, records) for name, records in by_benchmark.items())
    return [one for one in found if one is not None]


def _fall(name: str, records: Sequence[Record]) -> Fall | None:
    scored = [record for record in records if record.get("accuracy") is not None]
    if not scored:
        return None
    last = scored[-1]
    # a resume may find other rows in the file: those scores are of another test
    before = [record for record in scored[:-1] if record.get("items") == last.get("items")]
    if not before:
        return None
    best = max(before, key=lambda record: (record["accuracy"], record["step"]))
    pairs = [
        (a, b)
        for a, b in zip(best["per_task"], last["per_task"], strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return None
    was, now = zip(*pairs, strict=True)
    test = paired_test(was, now)
    if test.difference >= 0 or test.p_value >= LEVEL:
        return None
    means = sum(was) / len(was), sum(now) / len(now)
    return Fall(name, int(best["step"]), int(last["step"]), *means, test)
