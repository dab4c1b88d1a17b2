"""TRL's reward functions and environments as ours, and ours as TRL's. TRL itself is not imported.

A **reward function** of TRL's takes lists (``prompts, completions, completion_ids, **columns``) and
returns numbers or None. ``reward_from_trl`` makes a batch reward of it, ``reward_to_trl`` the
other way. Prompts and completions are conversations to it (``messages=True``) or texts.

An **environment** of TRL's (``environment_factory`` of ``GRPOTrainer``, TRL 1.16) is an object with
``reset(**row)``, public methods that are tools, and possibly ``get_reward()``.
``environment_from_trl`` makes ours of its factory and rows; ``environment_to_trl`` makes a factory
and a reward function of one of ours that is a ``ToolEnv`` (or has no tools).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

from envs.data import DataTasks
from envs.protocol import Environment, Message, Task
from envs.single_turn import Episodes, case_of, settled, user
from envs.tools import ToolEnv, tool_names, tool_spec
from rewards import Batched, Reward, Score, UsageError, name_of
from rewards.calling import Case, apply, as_score
from rewards.threads import WORLDS, in_thread

TrlReward = Callable[..., Any]
REWARD_TIMEOUT_S = 60.0
_NOT_COLUMNS = {"prompt", "completion", "completion_ids", "messages"}


# rewards


def reward_from_trl(function: TrlReward, *, messages: bool = False) -> Batched:
    """A reward function of TRL's as ours; ``None`` from it is a sample that was not judged.

    ``completion_ids``, ``trainer_state`` and the ``log_`` functions are not known here: they are
    handed over as lists of nothing, None, and functions that do nothing.
    """

    def called(
        prompt: list[str], completion: list[str], messages: list[Any], **columns: Any
    ) -> Any:
        if shown_as_messages:
            prompts: list[Any] = [_before(conversation) for conversation in messages]
            completions: list[Any] = [conversation[-1:] for conversation in messages]
        else:
            prompts, completions = prompt, completion
        return function(
            prompts=prompts,
            completions=completions,
            completion_ids=[[] for _ in prompts],
            trainer_state=None,
            log_extra=_log_nothing,
            log_metric=_log_nothing,
            **columns,
        )

    shown_as_messages = messages
    kept: Any = called  # what an async function returns is awaited by ``Batched``
    kept.name = getattr(function, "__name__", type(function).__name__)
    return Batched(kept)


def reward_to_trl(reward: str | Reward) -> TrlReward:
    """Our reward as one of TRL's ``reward_funcs``: an unjudged sample is None there.

    A row's ``answer`` (TRL's data sets often call it ``solution``) is the gold answer; TRL runs it
    on its own event loop.
    """
    import rewards

    loaded = rewards.load(reward) if isinstance(reward, str) else reward

    async def scores(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        cases = [
            _case(prompt, completion, _row(columns, number, len(prompts)))
            for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        found = await asyncio.gather(
            *(apply(loaded, case, timeout_s=REWARD_TIMEOUT_S) for case in cases)
        )
        return [score.value for score in found]

    scores.__name__ = name_of(loaded)
    return scores


def _case(prompt: Any, completion: Any, row: Mapping[str, Any]) -> Case:
    conversation = [*_messages(prompt, "user"), *_messages(completion, "assistant")]
    task = Task("", tuple(_messages(prompt, "user")), row.get("answer"), row)
    return case_of(task, conversation)


def _messages(shown: Any, role: str) -> list[Message]:
    return [{"role": role, "content": shown}] if isinstance(shown, str) else list(shown)


def _row(columns: Mapping[str, Any], number: int, n: int) -> dict[str, Any]:
    """One sample's columns of the lists; what is no list of ``n`` is TRL's own."""
    return {
        name: values[number]
        for name, values in columns.items()
        if isinstance(values, list) and len(values) == n and name not in _NOT_COLUMNS
    }


def _before(conversation: Sequence[Message]) -> list[Message]:
    return list(conversation[:-1])


def _log_nothing(*args: Any, **kwargs: Any) -> None: ...


# environments


def environment_from_trl(
    factory: Callable[[], Any],
    rows: Iterable[Mapping[str, Any]],
    *,
    rewards: Sequence[TrlReward] = (),
    name: str = "",
    seed: int = 0,
) -> Environment:
    """TRL's ``environment_factory`` with the rows of its data set as an environment of ours.

    The score is ``get_reward()`` plus the sum of ``rewards``, TRL's reward functions, as there; a
    None counts as nothing. Raises UsageError for an environment without ``reset`` or any reward.
    """
    known = [_with_messages(row) for row in rows]
    kind = type(factory())
    called = name or kind.__name__
    if not callable(getattr(kind, "reset", None)):
        raise UsageError(f"{called} has no reset(): it is no environment of TRL's")
    if not rewards and not callable(getattr(kind, "get_reward", None)):
        raise UsageError(f"{called} has no get_reward(): give its reward functions, rewards=[...]")
    tasks = DataTasks(known, name=called, seed=seed)
    return Episodes(called, tasks, lambda: TrlEnv(factory, rewards))


def _with_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of TRL's, where ``prompt`` may be a conversation."""
    prompt = row.get("prompt", "")
    messages = [user(prompt)] if isinstance(prompt, str) else list(prompt)
    return {"messages": messages, "answer": row.get("answer"), "row": dict(row)}


class TrlEnv(ToolEnv):
    """One episode of an environment of TRL's."""

    def __init__(self, factory: Callable[[], Any], rewards: Sequence[TrlReward]) -> None:
        super().__init__()
        self._inner = factory()
        self._rewards = rewards
        self._prompt: list[Message] = []
        self._specs = tuple(tool_spec(method) for method in self._methods().values())

    async def _reset(self, row: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._inner.reset):
            return await self._inner.reset(**row)
        return await in_thread(lambda: self._inner.reset(**row), self.call_timeout_s, WORLDS)

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:  # type: ignore[override]
        self.task = task
        *before, last = task.messages
        observed = await self._reset(task.columns["row"])
        if observed is not None:
            last = {**last, "content": last["content"] + observed}
        self._prompt = [*before, last]
        self.conversation = tuple(self._prompt)
        return self.conversation

    async def judge(self, message: Message) -> Score:
        total = 0.0
        own = getattr(self._inner, "get_reward", None)
        if own is not None:
            total += float(await settled(own()) or 0.0)
        rows = {name: [value] for name, value in self.task.columns["row"].items()}
        rows.pop("prompt", None)
        shown = {"prompts": [self._prompt], "completions": [[message]], **rows}
        for function in self._rewards:
            scores = await settled(
                function(
                    **shown,
                    completion_ids=[[]],
                    environments=[self._inner],
                    trainer_state=None,
                    log_extra=_log_nothing,
                    log_metric=_log_nothing,
                )
            )
            total += float(scores[0] or 0.0)
        return as_score(total)

    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        """Its public methods, as TRL finds them."""
        members = inspect.getmembers(type(self._inner), predicate=inspect.isfunction)
        public = (name for name, _ in members if not name.startswith("_"))
        names = (name for name in public if name not in ("reset", "get_reward"))
        return {name: getattr(self._inner, name) for name in names}


def environment_to_trl(environment: Environment) -> tuple[Callable[[], Any], TrlReward]:
    """Our environment as ``(environment_factory, reward_func)`` for ``GRPOTrainer``.

    The data set needs a column ``task_id`` of training or held-out tasks: ``rows_for_trl`` writes
    it. The tools are those of the ``ToolEnv``; its ``judge`` is the reward function, which sees the
    last message. Raises UsageError for another kind of Env, whose turns TRL could not play.
    """
    if not isinstance(environment.make(), ToolEnv):
        raise UsageError(
            f"{environment.name} is no ToolEnv: TRL plays tool calls and nothing else between turns"
        )
    known: dict[str, Task] = {}
    kind = _trl_class(environment, known)

    async def judged(
        completions: Sequence[Any], environments: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        pairs = zip(environments, completions, strict=True)
        scores = [as_score(await settled(one.env.judge(_last(text)))) for one, text in pairs]
        return [score.value for score in scores]

    judged.__name__ = environment.name
    return kind, judged


def rows_for_trl(environment: Environment, n: int) -> list[dict[str, Any]]:
    """The first ``n`` training tasks as rows of a data set for ``environment_to_trl``."""
    tasks = (environment.tasks.train(index) for index in range(n))
    return [
        {"prompt": [dict(m) for m in task.messages], "task_id": task.task_id, "index": index}
        for index, task in enumerate(tasks)
    ]


def _last(completion: Any) -> Message:
    if isinstance(completion, str):
        return {"role": "assistant", "content": completion}
    return completion[-1]  # type: ignore[no-any-return]


def _trl_class(environment: Environment, known: dict[str, Task]) -> type:
    """A class whose objects are one environment after another: TRL resets and uses them again."""

    class Inner:
        def __init__(self) -> None:
            self.env: Any = None

        def reset(self, index: int, **row: Any) -> None:
            if self.env is not None:
                _finish(self.env.close())
            self.env = environment.make()
            _finish(self.env.start(environment.tasks.train(index), seed=0))

    def method(name: str, written: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(written)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self.env, name)(*args, **kwargs)

        return call

    owner = type(environment.make())
    tools = {name: method(name, getattr(owner, name)) for name in tool_names(owner)}
    return type(owner.__name__, (Inner,), tools)


def _finish(value: Any) -> Any:
    """What a method returned, awaited in a thread of its own where TRL's loop runs already."""
    if not inspect.isawaitable(value):
        return value
    found: list[Any] = []

    async def wait() -> None:
        found.append(await value)

    thread = threading.Thread(target=lambda: asyncio.run(wait()), name="envs.trl")
    thread.start()
    thread.join()
    return found[0]
