"""Environments that raise, hang or return nonsense: told, counted, and nothing else is lost."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

import envs
from envs import EndReason, Step, Task
from posttrain.chat import Chat
from posttrain.rollout import EpisodeLimits, Player
from posttrain.types import Completion, FinishReason, Group, Request, Sampling
from pretrain.tokenizer import train_tokenizer
from rewards import Outcome, Score

TASK = Task("t", (envs.user("?"),), answer="yes")
FINE = Step(score=Score(1.0, Outcome.CORRECT), done=True)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["yes no ?"] * 50, vocab_size=300))


class Faulty:
    """One episode in four is at fault, in the way that ``fault`` says."""

    made = 0

    def __init__(self, fault: str) -> None:
        self.fault = fault if type(self).made % 4 == 1 else ""
        type(self).made += 1
        if self.fault == "make":
            raise ValueError("no license")

    def start(self, task: Task, *, seed: int) -> Any:
        if self.fault == "start raises":
            raise KeyError("no such board")
        if self.fault == "start is None":
            return None
        return [{"text": "?"}] if self.fault == "no message" else task.messages

    def step(self, message: Any) -> Any:
        if self.fault == "step raises":
            raise ZeroDivisionError("1 / 0")
        if self.fault == "step hangs":
            time.sleep(4.0)
        if self.fault == "score is nan":
            return Step(score=Score(math.nan, Outcome.CORRECT), done=True)
        return None if self.fault == "step is None" else FINE

    def close(self) -> None:
        if self.fault == "close raises":
            raise OSError("not closed")


class Infinite(envs.ToolEnv):
    def judge(self, message: Any) -> float:
        return math.inf


class Yes:
    """An engine that always writes the same."""

    def __init__(self, chat: Chat) -> None:
        self.ids = np.array([*chat.encode("yes"), chat.stop_token_ids[0]], np.int64)
        self.left = 0

    async def generate(self, request: Request) -> Completion:
        n = len(self.ids)
        return Completion(
            self.ids, np.full(n, -1.0, np.float32), np.zeros(n, np.int64), FinishReason.STOP
        )

    def leave(self) -> None:
        self.left += 1


def play(chat: Chat, make: Any) -> tuple[Group, Yes]:
    environment = envs.Episodes("faulty", envs.generated(lambda rng: TASK), make)
    engine = Yes(chat)
    limits = EpisodeLimits(4, 2000, 2.0)
    sampling = Sampling(20, 1.0, chat.stop_token_ids)
    player = Player(engine, environment, chat, sampling, limits)  # type: ignore[arg-type]
    return asyncio.run(player.group(TASK, seed=0, where=(0, 0), size=4)), engine


@pytest.mark.parametrize(
    ("fault", "reason", "told"),
    [
        ("make", EndReason.ENV_ERROR, "faulty.make raised"),
        ("start raises", EndReason.ENV_ERROR, "faulty.start raised"),
        ("start is None", EndReason.ENV_ERROR, "faulty.start returned None, not messages"),
        ("no message", EndReason.ENV_ERROR, "not messages with role and content"),
        ("step raises", EndReason.ENV_ERROR, "ZeroDivisionError: 1 / 0"),
        ("step hangs", EndReason.ENV_TIMEOUT, "faulty.step gave no answer within 2 s"),
        ("step is None", EndReason.ENV_ERROR, "faulty.step returned None, not an envs.Step"),
        ("score is nan", EndReason.ENV_ERROR, "ValueError"),
    ],
)
def test_a_fault_costs_its_episode_and_no_other(
    chat: Chat, fault: str, reason: EndReason, told: str
) -> None:
    Faulty.made = 0
    group, engine = play(chat, lambda: Faulty(fault))
    assert [one.score.value for one in group.rollouts] == [1.0, None, 1.0, 1.0]
    bad = group.rollouts[1]
    assert told in bad.score.detail
    assert bad.score.outcome in (Outcome.ERROR, Outcome.TIMEOUT)
    assert Counter(one.end_reason for one in group.rollouts) == {EndReason.DONE: 3, reason: 1}
    assert engine.left == 4  # no place of the engine is held


def test_a_close_that_raises_is_told_and_the_score_stands(chat: Chat) -> None:
    Faulty.made = 0
    group, _ = play(chat, lambda: Faulty("close raises"))
    assert [one.score.value for one in group.rollouts] == [1.0] * 4
    assert "close failed" in group.rollouts[1].messages[-1]["content"]


def test_a_reward_that_is_not_finite_is_no_reward(chat: Chat) -> None:
    group, _ = play(chat, Infinite)
    assert {one.score.value for one in group.rollouts} == {None}
    assert "not a finite number" in group.rollouts[0].score.detail


def test_an_unknown_environment_is_told_with_the_nearest_name() -> None:
    with pytest.raises(envs.UsageError, match=r"'workspce'\. Did you mean 'workspace'"):
        envs.load("workspce")
    with pytest.raises(envs.UsageError, match="Accepted: tasks, documents, reward, index, options"):
        envs.load("search", tasks=[])
