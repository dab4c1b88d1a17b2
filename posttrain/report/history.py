"""What happened in a run: the records of metrics.jsonl, each kind in order, the last word counts.

A resume writes some records again; for a step, and for an evaluation of the same phase and step or
of the same benchmark and step, the last record is the one that holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.evaluation.forgetting import curves
from posttrain.storage.jsonl import read_lines
from posttrain.storage.run_dir import RunDir

Record = Mapping[str, Any]

# Seconds of a step record by what they were spent on; "other" is the rest of time_total_s.
TIMES = (
    ("generation", "time_generation_s"),
    ("reward", "time_reward_s"),
    ("training", "time_train_s"),
    ("weight sync", "time_sync_s"),
    ("evaluation", "time_evaluation_s"),
    ("checkpoint", "time_checkpoint_s"),
)
TIME_COLOURS = ("blue", "violet", "green", "amber", "teal", "pink", "grey")  # and of the rest
_ORDER = {"before": 0, "during": 1, "after": 2}  # of evaluations after the same number of steps


@dataclass(frozen=True, slots=True)
class History:
    """A run as far as it got."""

    run: RunDir
    manifest: Record
    summary: Record  # of a finished run; empty otherwise
    steps: list[Record] = field(default_factory=list)
    evals: list[Record] = field(default_factory=list)
    benchmarks: Mapping[str, list[Record]] = field(default_factory=dict)  # by name, by step
    syncs: list[Record] = field(default_factory=list)
    skips: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    bad_lines: int = 0  # of metrics.jsonl, that did not parse

    @property
    def total_steps(self) -> int | None:
        """Steps the run was asked for."""
        total = setting(self.manifest, "grpo.steps")
        return int(total) if isinstance(total, int) else None

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) where the field is a number."""
        pairs = [(int(r["step"]), float(r[name])) for r in self.steps if is_number(r.get(name))]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_history(path: Path) -> History:
    """Read a run. Raises UsageError when ``path`` is not one; torn or foreign lines are counted."""
    run = RunDir.open(path)
    records, bad = read_lines(run.metrics_path)
    good = [r for r in records if isinstance(r, dict) and is_number(r.get("step"))]
    kinds: dict[str, list[Record]] = {}
    for record in good:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    steps = {int(r["step"]): r for r in kinds.get("step", [])}
    evals = {(int(r["step"]), str(r.get("phase"))): r for r in kinds.get("eval", [])}
    return History(
        run=run,
        manifest=run.manifest(),
        summary=_read_summary(run.path / "summary.json"),
        steps=[steps[step] for step in sorted(steps)],
        evals=[
            evals[key] for key in sorted(evals, key=lambda key: (key[0], _ORDER.get(key[1], 1)))
        ],
        benchmarks=curves(kinds.get("benchmark", [])),
        syncs=kinds.get("sync", []),
        skips=kinds.get("skip", []),
        events=kinds.get("event", []),
        bad_lines=bad + len(records) - len(good),
    )


def time_spent(record: Record) -> dict[str, float]:
    """Seconds of one step by what they were spent on; they add up to time_total_s.

    Where the loop says how long it waited for rollouts, that wait is split between generation and
    reward as these two are to each other: they run at the same time as each other, and with a lag
    also at the same time as training.
    """
    spent = {name: _number(record.get(key)) for name, key in TIMES}
    if is_number(record.get("time_wait_s")):
        wait, both = _number(record["time_wait_s"]), spent["generation"] + spent["reward"]
        reward = wait * spent["reward"] / both if both > 0 else 0.0
        spent |= {"generation": wait - reward, "reward": reward}
    spent["other"] = max(0.0, _number(record.get("time_total_s")) - sum(spent.values()))
    return spent


def setting(manifest: Record, path: str) -> Any:
    """A setting by its dotted name, None where the run's config has no such key."""
    value: Any = manifest.get("config")
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def leaves(tree: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a tree by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> str:
    """As a cell of a table."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the steps, evenly, with both ends."""
    if len(steps) <= most:
        return list(steps)
    last = len(steps) - 1
    return [steps[i] for i in sorted({round(i * last / (most - 1)) for i in range(most)})]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if is_number(value) else 0.0


def _read_summary(path: Path) -> Record:
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
