"""Environments written as one async function."""

from __future__ import annotations

import asyncio

import pytest

import envs
from envs import EndReason, Model, Task
from rewards import Outcome, UsageError
from tests.envs.episodes import play, played

ROWS = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(20)]


async def two_tries(task: Task, model: Model) -> float:
    reply = await model.ask(*task.messages)
    if reply["content"] == task.answer:
        return 1.0
    reply = await model.ask("No. Once more.")
    return 0.5 * (reply["content"] == task.answer)


def test_what_the_function_asks_is_shown_and_what_it_returns_is_the_score() -> None:
    environment = envs.from_function(two_tries, ROWS)
    task = environment.tasks.train(0)
    messages, score = play(environment, [task.answer])
    assert messages == [*task.messages, {"role": "assistant", "content": task.answer}]
    assert (score.value, score.outcome) == (1.0, Outcome.CORRECT)
    messages, score = play(environment, ["x", task.answer])
    assert [m["content"] for m in messages[1:]] == ["x", "No. Once more.", task.answer]
    assert (score.value, score.outcome) == (0.5, Outcome.WRONG)
    assert play(environment, ["x"])[1] is None
    assert environment.make().unfinished(EndReason.MAX_TURNS).outcome is Outcome.WRONG


def test_a_good_function_passes_the_check() -> None:
    async def one_try(task: Task, model: Model) -> bool:
        return (await model.ask(*task.messages))["content"] == task.answer

    assert envs.check(envs.from_function(one_try, ROWS), 10).ok


def test_close_runs_the_functions_finally_on_every_path() -> None:
    ended = []

    async def holds(task: Task, model: Model) -> float:
        try:
            await model.ask("go on")
            raise ZeroDivisionError("mine")
        finally:
            ended.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

    environment = envs.from_function(holds, ROWS)
    assert play(environment, [])[1] is None
    with pytest.raises(ZeroDivisionError):
        play(environment, ["x"])
    assert ended == [1, 0]  # cancelled by close; its own error


def test_a_function_that_asks_nothing_or_rewrites_is_told() -> None:
    async def silent(task: Task, model: Model) -> float:
        return 1.0

    async def rewrites(task: Task, model: Model) -> float:
        await model.go_on([envs.user("a")])
        await model.go_on([envs.user("b"), envs.user("c")])
        return 1.0

    with pytest.raises(RuntimeError, match="before it asked"):
        play(envs.from_function(silent, ROWS), ["x"])
    with pytest.raises(ValueError, match="rewritten"):
        play(envs.from_function(rewrites, ROWS), ["x"])
    with pytest.raises(UsageError, match="async def"):
        envs.from_function(lambda task, model: 1.0, ROWS)  # type: ignore[arg-type, return-value]


def test_episodes_run_beside_one_another() -> None:
    environment = envs.from_function(two_tries, ROWS)
    tasks = [environment.tasks.train(i) for i in range(8)]

    async def all_of_them() -> list[float]:
        found = await asyncio.gather(*(played(environment, t, ["x", t.answer]) for t in tasks))
        return [score.value for _, score in found]  # type: ignore[union-attr, misc]

    assert asyncio.run(all_of_them()) == [0.5] * 8
