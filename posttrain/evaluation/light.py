"""Benchmarks during training: a few rows of each, on the run's own engine between its steps.

What is asked is what ``posttrain eval --templates 1`` asks of the same rows, and the same rewards
judge it: the first template, one greedy answer. So differences between two steps are those of the
weights, and pairs of scores are of the same items.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from envs import Task
from posttrain.config import TaskSettings
from posttrain.errors import UsageError
from posttrain.evaluation.results import summarise_suite
from posttrain.evaluation.sources import Suite, Wanted, suites
from posttrain.held_out import play, wilson
from posttrain.rollout import Player


def light_suites(settings: TaskSettings, *, best_by: str = "") -> list[Suite]:
    """The benchmarks that the settings name, with their rows.

    Raises UsageError for one that is unknown, named twice or can't be had, and for a ``best_by``
    that is none of them.
    """
    found: dict[str, Suite] = {}
    for name, limit in settings.benchmarks.items():
        for suite in suites(Wanted(name, settings.data, limit, templates=1)):
            if suite.benchmark in found:
                raise UsageError(f"evaluation.tasks.benchmarks has {suite.benchmark} twice")
            found[suite.benchmark] = suite
    if best_by and best_by not in found:
        known = ", ".join(found) or "none"
        raise UsageError(
            f"checkpoint.keep has by = {best_by!r}, which is no benchmark of "
            f"evaluation.tasks.benchmarks; those are: {known}"
        )
    return list(found.values())


async def play_suites(
    player: Player, chosen: Sequence[Suite], max_tokens: int | None
) -> list[dict[str, Any]]:
    """Every suite on the player's engine, all at once: the fields of each one's record.

    ``max_tokens`` of an answer; None: the player's own.
    """
    longest = max_tokens or player.sampling.max_tokens
    sampling = dataclasses.replace(player.sampling, temperature=0.0, max_tokens=longest)
    player = dataclasses.replace(player, sampling=sampling, reward=None, greedy=False)
    firsts = itertools.accumulate((len(suite.tasks) for suite in chosen[:-1]), initial=0)
    played = await asyncio.gather(
        *(
            play(
                dataclasses.replace(player, environment=suite.environment),
                suite.tasks, samples=1, seed=0, first=first,
            )
            for suite, first in zip(chosen, firsts, strict=True)
        )
    )  # fmt: skip
    summaries = (summarise_suite(groups, votes=False) for groups in played)
    return [_record(suite, one) for suite, one in zip(chosen, summaries, strict=True)]


def _record(suite: Suite, numbers: dict[str, Any]) -> dict[str, Any]:
    judged = [value for value in numbers["per_task"] if value is not None]
    low, high = wilson(numbers["accuracy"], len(judged)) if judged else (None, None)
    return {
        "benchmark": suite.benchmark,
        "n_tasks": len(suite.tasks),
        "accuracy": numbers["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "format_failures": numbers["format_failures"],
        "outcomes": numbers["outcomes"],
        "mean_length": numbers["completion_length_mean"],
        "items": _fingerprint(suite.tasks),
        "per_task": numbers["per_task"],
    }


def _fingerprint(tasks: Sequence[Task]) -> str:
    """The same for the same tasks in the same order."""
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        digest.update(json.dumps(dataclasses.astuple(task), default=str).encode())
    return digest.hexdigest()
