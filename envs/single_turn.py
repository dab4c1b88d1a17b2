"""The environment of one question and one answer, judged by a reward.

The prompt a reward sees is the task's last user message, the completion is what the model wrote
last, ``messages`` is the whole conversation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.protocol import Budget, Env, Message, Step, Task, TaskSource
from envs.splitting import question_of
from rewards import Case, Reward, apply

REWARD_TIMEOUT_S = 60.0


@dataclass
class Episodes:
    """The simplest Environment: tasks, and a function (often the Env class) that makes episodes."""

    name: str
    tasks: TaskSource
    make: Callable[[], Env]
    budget: Budget = field(default_factory=Budget)


@dataclass
class SingleTurn:
    """An Environment of one question and one answer, judged by ``reward``.

    ``system_prompt``, when not empty, goes before the task's messages.
    """

    name: str
    tasks: TaskSource
    reward: Reward
    system_prompt: str = ""
    reward_timeout_s: float = REWARD_TIMEOUT_S

    def make(self) -> Env:
        return SingleTurnEnv(self.reward, self.system_prompt, self.reward_timeout_s)


class SingleTurnEnv:
    """One question, one answer, one judgement."""

    def __init__(
        self, reward: Reward, system_prompt: str = "", reward_timeout_s: float = REWARD_TIMEOUT_S
    ) -> None:
        self._reward = reward
        self._system_prompt = system_prompt
        self._timeout_s = reward_timeout_s
        self._task: Task | None = None
        self._messages: tuple[Message, ...] = ()

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        """The task's messages, behind the system prompt if there is one. The seed has no use."""
        self._task = task
        system = (
            ({"role": "system", "content": self._system_prompt},) if self._system_prompt else ()
        )
        self._messages = (*system, *task.messages)
        return self._messages

    async def step(self, message: Message) -> Step:
        """Judge the answer; the episode is over."""
        if self._task is None:
            raise RuntimeError("step was called before start")
        case = case_of(self._task, (*self._messages, message))
        score = await apply(self._reward, case, timeout_s=self._timeout_s)
        return Step(score=score, done=True)

    async def close(self) -> None:
        self._task = None


def case_of(task: Task, messages: Sequence[Message]) -> Case:
    """What a reward is shown of a conversation on a task."""
    written = [str(m["content"]) for m in messages if m["role"] == "assistant"]
    return Case(
        prompt=question_of(task.messages),
        completion=written[-1] if written else "",
        answer=task.answer,
        messages=tuple(messages),
        columns=task.columns,
    )


async def settled(value: Any) -> Any:
    """Await what may be awaitable: the methods of an Env may be plain or async."""
    return await value if inspect.isawaitable(value) else value


def user(content: str) -> Mapping[str, str]:
    """A user message."""
    return {"role": "user", "content": content}
