"""An episode as one async function, which asks the model where it needs an answer.

    async def play(task, model):
        reply = await model.ask("Name a prime above 100.")
        if not is_prime(reply["content"]):
            reply = await model.ask("That is none. Another one?")
        return float(is_prime(reply["content"]))

    environment = envs.from_function(play, rows)

The function is the coroutine form of an ``Env``: what it asks first is what ``start`` returns, each
further question is a ``step``, and what it returns (a number, a bool or a Score) ends the episode.
Frameworks whose environments drive the model themselves (verifiers) are adapted by the same
class. ``close`` cancels a function that still waits, so ``finally`` and ``async with`` in it run on
every path.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from envs.data import DataTasks
from envs.protocol import Budget, EndReason, Env, Message, Step, Task, TaskSource, ToolSpec, instant
from envs.single_turn import Episodes, user
from rewards import Outcome, Score, UsageError
from rewards.calling import as_score

Play = Callable[[Task, "Model"], Awaitable[Any]]


class Model:
    """What the function is given to ask: the policy, behind its conversation so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed  # the episode's; every draw of the function should come from it
        self.messages: list[Message] = []
        self._question: asyncio.Future[tuple[Message, ...]] = _future()
        self._reply: asyncio.Future[Message] = _future()

    async def ask(self, *messages: Message | str) -> Message:
        """Show ``messages`` (a text is the user's) after the conversation; the model's reply.

        A reply has ``content`` and, where the model called tools, ``tool_calls``.
        """
        if not messages:
            raise ValueError("ask needs a message: the model has answered the ones before")
        shown = tuple(user(one) if isinstance(one, str) else one for one in messages)
        self.messages += shown
        self._question.set_result(shown)
        reply = await self._reply
        self._reply = _future()
        return reply

    async def go_on(self, conversation: Sequence[Message]) -> Message:
        """Ask with a whole conversation, which must begin with what was said so far.

        Raises ValueError for one that rewrites it: the tokens of earlier turns stay as sampled.
        """
        known = len(self.messages)
        for old, new in zip(self.messages, conversation, strict=False):
            if (old["role"], old["content"]) != (new["role"], new["content"]):
                raise ValueError(
                    f"the conversation was rewritten: {old!r:.200} became {new!r:.200}"
                )
        return await self.ask(*conversation[known:])

    async def question(self) -> tuple[Message, ...]:
        """What the function asks next."""
        shown = await asyncio.shield(self._question)
        self._question = _future()
        return shown

    def answer(self, reply: Message) -> None:
        """Let the function go on."""
        self.messages.append(reply)
        self._reply.set_result(reply)


class FunctionEnv:
    """One episode of ``play``."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._model: Model | None = None
        self._running: asyncio.Future[Any] | None = None

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        self._model = Model(seed)
        self._running = asyncio.ensure_future(self._play(task, self._model))
        step = await self._next(self._model)
        if step.done:
            raise RuntimeError("the function returned before it asked the model anything")
        return step.messages

    async def step(self, message: Message) -> Step:
        if self._model is None:
            raise RuntimeError("step was called before start")
        self._model.answer(message)
        return await self._next(self._model)

    @instant
    def unfinished(self, reason: EndReason) -> Score:
        """An episode that ran out of turns, tokens or time before the function returned."""
        return Score(0.0, Outcome.WRONG, detail=f"ended without an answer: {reason}")

    async def close(self) -> None:
        """Cancel the function where it still waits, and wait until it is gone."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _next(self, model: Model) -> Step:
        """The next question, or the end."""
        if self._running is None:
            raise RuntimeError("the episode is closed")
        question = asyncio.ensure_future(model.question())
        try:
            await asyncio.wait({self._running, question}, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return Step(messages=question.result())
            return Step(score=as_score(self._running.result()), done=True)
        finally:
            question.cancel()


class _ToolFunctionEnv(FunctionEnv):
    """The same where the model is told of tools; the function runs the calls."""

    def __init__(self, play: Play, tools: Sequence[ToolSpec]) -> None:
        super().__init__(play)
        self._tools = tools

    @instant
    def tools(self) -> Sequence[ToolSpec]:
        return self._tools


def from_function(
    play: Play,
    tasks: TaskSource | Iterable[Mapping[str, Any]],
    *,
    name: str = "",
    tools: Sequence[ToolSpec] = (),
    budget: Budget | None = None,
    seed: int = 0,
) -> Episodes:
    """An async function ``play(task, model)`` as an environment; see the module docstring.

    ``tasks`` are rows (``envs.data``) or a TaskSource; ``seed`` is the order of the rows. Raises
    UsageError for a function that is not async.
    """
    if not inspect.iscoroutinefunction(play):
        raise UsageError(f"{play!r} must be written with `async def`, since it waits for the model")
    called = name or play.__name__
    source: Any = tasks
    if not hasattr(tasks, "held_out"):
        rows = tasks if isinstance(tasks, Sequence) else list(tasks)  # type: ignore[arg-type]
        source = DataTasks(rows, name=called, seed=seed)

    def make() -> Env:
        return _ToolFunctionEnv(play, tools) if tools else FunctionEnv(play)

    return Episodes(called, source, make, budget or Budget())


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
