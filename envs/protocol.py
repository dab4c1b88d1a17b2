"""The environment contract, on one screen.

One ``Env`` instance is one episode: ``start`` once, ``step`` until done, ``close`` always. Methods
may be plain or async. Messages are ``{"role": ..., "content": ...}`` dictionaries; there is no
tokenizer and no tensor in sight. The engine, sampling, budgets and deadlines are the caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from rewards import Score

Message = Mapping[str, Any]


class EndReason(StrEnum):
    """Why an episode ended."""

    DONE = "done"  # the environment said so
    LENGTH = "length"  # the model ran into max_tokens or its window
    MAX_TURNS = "max_turns"
    ENV_ERROR = "env_error"  # the environment raised: the score is an error, not a zero
    ENV_TIMEOUT = "env_timeout"


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. ``columns`` is whatever else the data set knows; rewards get it by name."""

    task_id: str
    messages: tuple[Message, ...]
    answer: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What the environment answers to a message of the model."""

    messages: tuple[Message, ...] = ()  # shown to the model next; empty when done
    score: Score | None = None  # None until known; the last one counts
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class Env(Protocol):
    """One episode."""

    def start(self, task: Task, *, seed: int) -> Sequence[Message] | Awaitable[Sequence[Message]]:
        """The conversation the model first sees."""
        ...

    def step(self, message: Message) -> Step | Awaitable[Step]:
        """React to what the model wrote."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Release everything; called once on every path."""
        ...


class TaskSource(Protocol):
    """An endless, seeded stream of tasks with random access, so that a resume needs one number."""

    def train(self, index: int) -> Task:
        """The index-th training task; never one of the held-out ones."""
        ...

    def held_out(self, n: int) -> list[Task]:
        """The first n held-out tasks, distinct. Raises ValueError when there are fewer."""
        ...


class Environment(Protocol):
    """What ``envs.load`` returns and a training job takes: tasks, and an Env for each episode."""

    name: str
    tasks: TaskSource

    def make(self) -> Env:
        """A fresh episode."""
        ...
