"""Several environments as one: ``envs.load("mix", of=[{"env": ..., "weight": 2.0}, ...])``.

Which task comes at which index is ``envs.mixing``'s to say. A task carries the name of its
environment in the column ``environment`` and before its id, so that scores of two parts are never
mixed up; an episode is played and judged by the environment that the task is of. The budget is the
loosest of the parts' in each respect, since one episode may be of any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from envs.mixing import Curriculum, Mixture
from envs.protocol import Budget, EndReason, Env, Environment, Message, Step, Task, ToolSpec
from envs.single_turn import Episodes
from rewards import Score, UsageError
from rewards.threads import WORLDS, in_thread

COLUMN = "environment"
_A_DAY_S = 86_400.0  # the caller's deadline is the one that counts


@dataclass(frozen=True, slots=True)
class Part:
    """One environment of a mixture."""

    environment: Environment
    weight: float = 1.0
    rates: Mapping[str, tuple[int, int]] | None = None  # pass rates by task, for a curriculum


def mixed(parts: Sequence[Part], *, seed: int = 0) -> Environment:
    """The parts as one environment. Raises UsageError for none, or a weight not above 0."""
    names: list[str] = []
    for part in parts:
        name = part.environment.name
        names.append(name if name not in names else f"{name}#{len(names)}")
    sources = [(_Named(part, name), part.weight) for part, name in zip(parts, names, strict=True)]
    tasks = Mixture(sources, seed=seed)
    known = {name: part.environment for part, name in zip(parts, names, strict=True)}
    has_tools = any(hasattr(one.make(), "tools") for one in known.values())

    def make() -> Env:
        return _ToolMixedEnv(known) if has_tools else MixedEnv(known)

    return Episodes("mix", tasks, make, _loosest(list(known.values())))


class _Named:
    """A part's tasks under its name."""

    def __init__(self, part: Part, name: str) -> None:
        tasks = part.environment.tasks
        self._tasks = tasks if part.rates is None else Curriculum(tasks, _own(part.rates, name))
        self._name = name

    def train(self, index: int) -> Task:
        return self._named(self._tasks.train(index))

    def held_out(self, n: int) -> list[Task]:
        return [self._named(task) for task in self._tasks.held_out(n)]

    def _named(self, task: Task) -> Task:
        columns = {**task.columns, COLUMN: self._name}
        return replace(task, task_id=f"{self._name}/{task.task_id}", columns=columns)


def _own(rates: Mapping[str, tuple[int, int]], name: str) -> dict[str, tuple[int, int]]:
    """Rates by the part's own task ids, whether measured in a mixture or alone."""
    return {task_id.removeprefix(f"{name}/"): rate for task_id, rate in rates.items()}


class MixedEnv:
    """One episode of whichever environment the task is of."""

    def __init__(self, known: Mapping[str, Environment]) -> None:
        self._known = known
        self._inner: Any = None

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        name = str(task.columns.get(COLUMN))
        if name not in self._known:
            raise UsageError(f"task {task.task_id} is of no environment of this mixture: {name!r}")
        self._inner = self._known[name].make()
        own = replace(task, task_id=task.task_id.removeprefix(f"{name}/"))
        messages: Sequence[Message] = await _called(self._inner.start, own, seed=seed)
        return messages

    async def step(self, message: Message) -> Step:
        step: Step = await _called(self._inner.step, message)
        return step

    async def unfinished(self, reason: EndReason) -> Score | None:
        judge = getattr(self._inner, "unfinished", None)
        return None if judge is None else await _called(judge, reason)

    async def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await _called(inner.close)


class _ToolMixedEnv(MixedEnv):
    async def tools(self) -> Sequence[ToolSpec]:
        """Those of the task's environment; it may have none."""
        tools = getattr(self._inner, "tools", None)
        return () if tools is None else await _called(tools)


async def _called(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A method of an Env: on the loop where it is async or instant, else in a thread."""
    if inspect.iscoroutinefunction(method):
        return await method(*args, **kwargs)
    if getattr(method, "instant", False):
        return method(*args, **kwargs)
    return await in_thread(lambda: method(*args, **kwargs), _A_DAY_S, WORLDS)


def _loosest(environments: Sequence[Environment]) -> Budget:
    budgets = [getattr(one, "budget", Budget()) for one in environments]
    values = {}
    for field in fields(Budget):
        each = [getattr(budget, field.name) for budget in budgets]
        values[field.name] = None if None in each else max(each)
    return Budget(**values)
