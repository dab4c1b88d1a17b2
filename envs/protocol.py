"""The environment contract, on one screen.

One ``Env`` instance is one episode: ``start`` once, ``step`` until done, ``close`` always. Methods
may be plain (they get a thread, unless marked ``instant``) or async. Messages are
``{"role": ..., "content": ...}`` dictionaries, in OpenAI's form with ``tool_calls`` where the model
called tools; there is no tokenizer and no tensor in sight.
The engine, sampling and deadlines are the caller's; an environment may bound its own episodes.

Beside the three methods an Env may have ``tools() -> Sequence[ToolSpec]``, asked once after
``start``, and ``unfinished(reason) -> Score``, the verdict on an episode that ended for another
reason than its own and has no score; without it such an episode could not be judged. ``ToolEnv``
(``envs.tools``) has both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from rewards import Score

Message = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


def instant(method: F) -> F:
    """Mark a plain method that waits for nothing: it is called on the event loop, not in a thread.

    The mark is the function's own: a subclass that overrides the method gets a thread again.
    """
    method.__dict__["instant"] = True
    return method


class EndReason(StrEnum):
    """Why an episode ended."""

    DONE = "done"  # the environment said so
    LENGTH = "length"  # the model ran into max_tokens or its window
    MAX_TURNS = "max_turns"
    TOKENS = "tokens"  # the budget of tokens, all turns together
    TOOL_TIME = "tool_time"  # the budget of seconds in the environment's steps
    TOTAL_TIME = "total_time"  # the budget of seconds, generation included
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
class ToolSpec:
    """A tool as the model is told of it."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of an object

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates and chat routes take."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Budget:
    """What bounds one episode of an environment, beside the job's own limits; None: nothing."""

    turns: int | None = None  # of the model
    tokens: int | None = None  # that the model writes, over all turns
    tool_s: float | None = None  # seconds in ``step``, over all turns
    total_s: float | None = None  # seconds from ``start`` on


@dataclass(frozen=True, slots=True)
class Step:
    """What the environment answers to a message of the model."""

    messages: tuple[Message, ...] = ()  # shown to the model next; empty when done
    score: Score | None = None  # None until known; the last one counts
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)  # numbers are summed over an episode


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
    """What ``envs.load`` returns and a training job takes: tasks, and an Env for each episode.

    It may have a ``budget``.
    """

    name: str
    tasks: TaskSource

    def make(self) -> Env:
        """A fresh episode."""
        ...
