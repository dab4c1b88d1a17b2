"""Mixtures keep their proportions and their random access; curricula leave held-out tasks alone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import Curriculum, Mixture, Task, UsageError, pass_rates
from envs.mixing import BLOCK
from envs.splitting import held_out, question_of


class Counted:
    """Task ``i`` of source ``a`` is ``a-i``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def train(self, index: int) -> Task:
        return Task(f"{self.name}-{index}", (envs.user(f"{self.name} {index}"),))

    def held_out(self, n: int) -> list[Task]:
        return [
            Task(f"{self.name}-h{i}", (envs.user(f"held out {self.name} {i}"),)) for i in range(n)
        ]


def ids(source: envs.TaskSource, some: range) -> list[str]:
    return [source.train(index).task_id for index in some]


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_each_block_holds_the_weights_and_each_source_goes_on_in_order(
    weights: list[int], seed: int
) -> None:
    mixed = Mixture([(Counted(str(i)), w) for i, w in enumerate(weights)], seed=seed)
    got = ids(mixed, range(2 * BLOCK))
    for first in (0, BLOCK):
        counts = Counter(one.split("-")[0] for one in got[first : first + BLOCK])
        for i, weight in enumerate(weights):
            assert abs(counts[str(i)] - BLOCK * weight / sum(weights)) < 1.0
    for i in range(len(weights)):  # nothing of a source is left out or comes twice
        own = [one for one in got if one.startswith(f"{i}-")]
        assert own == [f"{i}-{n}" for n in range(len(own))]


def test_a_mixture_has_random_access_and_depends_on_its_seed() -> None:
    def made(seed: int) -> Mixture:
        return Mixture([(Counted("a"), 3.0), (Counted("b"), 1.0)], seed=seed)

    whole = ids(made(1), range(3000))
    assert ids(made(1), range(2500, 2600)) == whole[2500:2600]
    assert ids(made(2), range(100)) != whole[:100]
    assert [t.task_id for t in made(0).held_out(3)] == ["a-h0", "b-h0", "a-h1"]
    assert made(0).held_out(0) == []


@pytest.mark.parametrize(
    ("weights", "said"), [([], "at least one"), ([1.0, 0.0], "source 1"), ([1.0, 1e-9], "1000")]
)
def test_a_mixture_that_cannot_be(weights: list[float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Mixture([(Counted("a"), weight) for weight in weights])


def test_a_curriculum_keeps_what_is_neither_always_nor_never_solved() -> None:
    scores = [("a-0", 0.0)] * 4 + [("a-1", 1.0)] * 4 + [("a-2", 1.0)] * 3 + [("a-2", 0.0)]
    scores += [("a-3", 0.0)] * 3 + [("a-3", None)] * 5  # judged three times: not known yet
    rates = pass_rates(scores)
    assert rates == {"a-0": (0, 4), "a-1": (4, 4), "a-2": (3, 4), "a-3": (0, 3)}
    kept = Curriculum(Counted("a"), rates | {"a-h0": (4, 4)})
    assert ids(kept, range(5)) == ["a-104729", "a-104730", "a-2", "a-3", "a-4"]
    assert [task.task_id for task in kept.held_out(2)] == ["a-h0", "a-h1"]


def test_a_curriculum_with_nothing_left_says_so() -> None:
    class One(Counted):
        def train(self, index: int) -> Task:
            return super().train(0)

    with pytest.raises(UsageError, match="always or never"):
        Curriculum(One("a"), {"a-0": (0, 8)}).train(0)


# whole environments


def test_a_mixture_plays_each_task_in_its_own_environment(tmp_path: Path) -> None:
    files = {}
    for name, factor in (("double", 2), ("triple", 3)):
        files[name] = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {n}", "answer": str(factor * n)} for n in range(1, 60)]
        files[name].write_text("\n".join(map(json.dumps, rows)))
    of = [
        {"env": str(files["double"]), "weight": 3.0, "reward": "exact"},
        {"env": str(files["triple"]), "reward": "exact"},
    ]
    environment = envs.load("mix", of=of, seed=1)
    tasks = [environment.tasks.train(i) for i in range(1000)]
    named = [task.columns["environment"] for task in tasks]
    assert named.count(str(files["double"])) == 750
    assert all(task.task_id.startswith(f"{task.columns['environment']}/") for task in tasks)
    assert len({task.task_id for task in tasks if task.task_id.endswith("/7")}) == 2
    assert envs.check(environment, 12).ok
    # a resume: another object, from the middle, in another order
    again = envs.load("mix", of=of, seed=1)
    assert [again.tasks.train(i) for i in reversed(range(400, 500))] == tasks[400:500][::-1]
    aside = {question_of(task.messages) for task in environment.tasks.held_out(8)}
    assert len(aside) == 8
    assert all(held_out(question) for question in aside)
    assert not aside & {question_of(task.messages) for task in tasks}


def test_a_curriculum_by_measured_pass_rates_is_exact_on_resume(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"q{n}", "answer": "1"}) for n in range(40)))
    plain = {"env": str(rows), "reward": "exact"}
    whole = envs.load("mix", of=[plain])
    ids = sorted({whole.tasks.train(i).task_id for i in range(80)})
    easy, hard, kept = ids[0], ids[1], ids[2]
    scores = [(easy, 1.0)] * 4 + [(hard, 0.0)] * 4 + [(kept, 1.0), (kept, 0.0)] * 2
    envs.write_rates(envs.pass_rates(scores), tmp_path / "rates.json")
    of = [{**plain, "rates": str(tmp_path / "rates.json")}]
    first = [envs.load("mix", of=of).tasks.train(i) for i in range(120)]
    assert {task.task_id for task in first} == set(ids) - {easy, hard}
    assert [envs.load("mix", of=of).tasks.train(i) for i in range(60, 120)] == first[60:]
    assert envs.load("mix", of=of).tasks.held_out(2) == whole.tasks.held_out(2)


def test_tools_and_budgets_of_a_mixture_are_the_tasks_environments() -> None:
    class Adds(envs.ToolEnv):
        def add(self, a: int, b: int) -> int:
            """a + b"""
            return a + b

        def judge(self, message: Any) -> bool:
            return bool(message["content"] == "3")

    rows = [{"prompt": f"q{n}", "answer": "3"} for n in range(30)]
    plain = envs.from_tasks(rows, reward="exact", name="plain")
    tools = envs.Episodes("tools", plain.tasks, Adds, envs.Budget(turns=3, tokens=50))
    also = envs.Episodes("also", plain.tasks, Adds, envs.Budget(turns=5))
    assert envs.mixed([envs.Part(tools), envs.Part(also)]).budget == envs.Budget(turns=5)  # type: ignore[attr-defined]
    environment = envs.mixed([envs.Part(plain), envs.Part(tools)])

    async def tools_of(task: Task) -> list[str]:
        env: Any = environment.make()
        await env.start(task, seed=0)
        names = [tool.name for tool in await env.tools()]
        await env.close()
        return names

    for index in range(6):
        task = environment.tasks.train(index)
        wanted = ["add"] if task.columns["environment"] == "tools" else []
        assert asyncio.run(tools_of(task)) == wanted
    assert envs.check(environment, 6).ok


@pytest.mark.parametrize(
    ("of", "why"),
    [([], "at least one"), ([{"weight": 1}], "which environment"), ([{"env": "zzz"}], "unknown")],
)
def test_a_mixture_that_cannot_be_is_told(of: list[Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        envs.load("mix", of=of)
