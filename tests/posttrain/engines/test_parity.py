"""The gate before training: engine and learner agree on what the learner's weights wrote."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs import EndReason
from posttrain.config import make_config
from posttrain.errors import RunError
from posttrain.job import Job
from posttrain.types import Completion, FinishReason, Group, Ints, Rollout, Turn
from rewards import Outcome, Score

PROMPT = np.array([4, 5, 6])


class Learner:
    """Finds every token of likelihood -1."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def logprobs(self, sequences: list[Ints], temperature: float) -> list[np.ndarray]:
        self.asked += [ids.tolist() for ids in sequences]
        assert temperature == 0.9
        return [np.full(len(ids) - 1, -1.0, np.float32) for ids in sequences]


def group(step: int, versions: list[int], logprobs: list[float]) -> Group:
    ids = np.arange(len(versions)) + 10
    written = Completion(ids, np.array(logprobs), np.array(versions), FinishReason.STOP)
    turn, score = Turn(PROMPT, written), Score(1.0, Outcome.CORRECT)
    return Group(step, 0, (Rollout(f"{step}-0-0", "t", 0, (turn,), (), score, EndReason.DONE),))


def job() -> Any:
    config = make_config(
        {"model": "m", "env": "e", "rollout": {"temperature": 0.9}, "sync": {"max_probe_gap": 0.05}}
    )
    records: list[dict[str, Any]] = []
    return SimpleNamespace(
        config=config, learner=Learner(), log=records.append, records=records,
        logprob_gap=None, _parity_checked=False,
    )  # fmt: skip


def check(made: Any, *groups: Group) -> None:
    asyncio.run(Job.check_parity(made, groups))


def test_a_gap_within_the_limit_is_logged_once() -> None:
    made = job()
    check(made, group(0, [0, 0], [-1.02, -1.0]), group(0, [0], [-0.96]))
    assert made.logprob_gap == pytest.approx((0.02 + 0.0 + 0.04) / 3)
    (record,) = made.records
    assert (record["event"], record["step"]) == ("parity", 0)
    assert made.learner.asked == [[4, 5, 6, 10, 11], [4, 5, 6, 10]]
    check(made, group(1, [1], [-9.0]))  # once per process
    assert len(made.learner.asked) == 2


def test_a_gap_above_it_refuses_to_train() -> None:
    with pytest.raises(RunError, match=r"mean log-prob gap 0\.4000 over 1 completions"):
        check(job(), group(0, [0, 0], [-1.8, -1.0]))


def test_of_a_completion_over_two_versions_the_newer_part_is_compared() -> None:
    made = job()
    check(made, group(3, [2, 2, 3], [-7.0, -7.0, -1.01]))
    assert made.logprob_gap == pytest.approx(0.01, abs=1e-6)


def test_what_older_weights_wrote_leaves_the_check_to_the_next_step() -> None:
    made = job()
    check(made, group(3, [1, 2], [-7.0, -7.0]))
    assert (made.logprob_gap, made.learner.asked) == (None, [])
    check(made, group(4, [3, 4], [-7.0, -1.03]))
    assert made.logprob_gap == pytest.approx(0.03, abs=1e-6)
