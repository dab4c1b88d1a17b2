"""What an evaluation leaves behind, and how two of them are compared.

    OUT/
      eval.json            settings, versions, and per benchmark the numbers below
      rollouts/            every sample (``storage.rollout_files``; one "step" is one suite)

Of each benchmark: accuracy (mean@k) with a bootstrap interval over tasks, pass@k, maj@k, format
failures apart from wrong answers, and the same under each template with the spread between them.
The headline is the mean over templates. Where prompts are labelled as harmful or not (the reward
``refusal``), both mistakes are counted apart under ``safety``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError
from posttrain.evaluation.statistics import Vote, bootstrap_interval, majority_at_k, paired_test
from posttrain.held_out import pass_at_k
from posttrain.types import Group, Rollout
from rewards import Outcome
from rewards.math import final_answer

RESULT = "eval.json"


def summarise_suite(groups: Sequence[Group], *, votes: bool) -> dict[str, Any]:
    """Numbers of one benchmark under one template. Samples that could not be judged are absent."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    outcomes = Counter(str(rollout.score.outcome) for rollout in rollouts)
    judged = [[r for r in group.rollouts if r.score.judged] for group in groups]
    per_task = [_share_correct(members) if members else None for members in judged]
    known = [value for value in per_task if value is not None]
    n_samples = max((len(group.rollouts) for group in groups), default=0)
    return {
        "accuracy": sum(known) / len(known) if known else None,
        "interval": bootstrap_interval(known) if known else None,
        "outcomes": dict(outcomes),
        "format_failures": outcomes[Outcome.UNPARSEABLE] / max(1, len(rollouts)),
        "pass_at_k": _over_tasks(judged, n_samples, _pass),
        "maj_at_k": _over_tasks(judged, n_samples, _maj) if votes else {},
        "completion_length_mean": sum(r.n_completion_tokens for r in rollouts)
        / max(1, len(rollouts)),
        "per_task": per_task,
    } | _safety(judged)


def summarise_benchmark(by_template: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The headline of one benchmark over its templates, and the spread between them."""
    accuracies = [one["accuracy"] for one in by_template.values() if one["accuracy"] is not None]
    columns = zip(*(one["per_task"] for one in by_template.values()), strict=True)
    per_task = [_mean([v for v in column if v is not None]) for column in columns]
    known = [value for value in per_task if value is not None]
    return {
        "accuracy": _mean(accuracies),
        "interval": bootstrap_interval(known) if known else None,
        "n_tasks": len(per_task),
        "template_spread": max(accuracies) - min(accuracies) if accuracies else None,
        "format_failures": _mean([one["format_failures"] for one in by_template.values()]),
        "templates": dict(by_template),
        "per_task": per_task,
    }


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The eval.json of a folder. Raises UsageError."""
    file = Path(path) / RESULT if Path(path).is_dir() else Path(path)
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no result of posttrain eval: {error}") from error
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """b - a on every benchmark both were asked, paired by task. Raises UsageError without one."""
    shared = [name for name in a["benchmarks"] if name in b["benchmarks"]]
    if not shared:
        raise UsageError("the two evaluations have no benchmark in common")
    found = {}
    for name in shared:
        one, other = a["benchmarks"][name]["per_task"], b["benchmarks"][name]["per_task"]
        if len(one) != len(other):
            raise UsageError(f"{name}: {len(one)} tasks against {len(other)}: use the same --limit")
        pairs = [(x, y) for x, y in zip(one, other, strict=True) if x is not None and y is not None]
        result = paired_test([x for x, _ in pairs], [y for _, y in pairs])
        found[name] = {field: getattr(result, field) for field in type(result).__slots__}
    return found


def _share_correct(members: Sequence[Rollout]) -> float:
    return sum(r.score.outcome is Outcome.CORRECT for r in members) / len(members)


def _safety(judged: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    """How often harmful prompts are answered and harmless ones refused; empty without labels."""
    found = {}
    for name, harmful, refused in (("harmful_answered", 1, 0), ("harmless_refused", 0, 1)):
        parts = [
            [r.score.parts for r in members if "refused" in r.score.parts] for members in judged
        ]
        per_task = [
            sum(one["refused"] == refused for one in task) / len(task)
            for task in parts
            if task and task[0]["harmful"] == harmful
        ]
        if per_task:
            interval = bootstrap_interval(per_task)
            found[name] = {"share": _mean(per_task), "interval": interval, "n": len(per_task)}
    return {"safety": found} if found else {}


def _over_tasks(judged: Sequence[Sequence[Rollout]], n: int, estimate: Any) -> dict[int, float]:
    """Mean over the tasks with at least k judged samples, for k = 1, 2, 4, ... and n."""
    ks = sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | ({n} if n else set()))
    found = {}
    for k in ks:
        enough = [members for members in judged if len(members) >= k]
        if enough:
            found[k] = sum(estimate(members, k) for members in enough) / len(enough)
    return found


def _pass(members: Sequence[Rollout], k: int) -> float:
    correct = sum(r.score.outcome is Outcome.CORRECT for r in members)
    return pass_at_k(len(members), correct, k)


def _maj(members: Sequence[Rollout], k: int) -> float:
    return majority_at_k([_vote(rollout) for rollout in members], k)


def _vote(rollout: Rollout) -> Vote:
    """All that are correct are one answer, however they are written."""
    correct = rollout.score.outcome is Outcome.CORRECT
    answer = "correct" if correct else final_answer(rollout.text)
    return Vote(answer if correct or answer is None else f"= {answer.strip()}", correct)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
