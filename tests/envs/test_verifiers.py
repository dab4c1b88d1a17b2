"""Environments of the real package ``verifiers``, v0 and v1."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import envs
from envs.adapters.verifiers import from_verifiers
from rewards import Outcome, UsageError
from tests.envs.episodes import called, play

vf = pytest.importorskip("verifiers")
import verifiers.v1 as v1  # noqa: E402
from datasets import Dataset  # noqa: E402

ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(30)]


def exact(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"] == answer)


def length(completion: Any) -> float:
    return float(len(completion[-1]["content"]))


def rubric() -> Any:
    return vf.Rubric(funcs=[exact, length], weights=[1.0, 0.0])


def single(**more: Any) -> Any:
    return vf.SingleTurnEnv(
        dataset=Dataset.from_list(ROWS), system_prompt="Add.", rubric=rubric(), **more
    )


def test_a_v0_environment_of_one_turn_is_judged_by_its_rubric() -> None:
    environment = from_verifiers(single())
    task = environment.tasks.train(0)
    messages, score = play(environment, [task.answer])
    assert messages[0] == {"role": "system", "content": "Add."}
    assert messages[1]["content"].startswith("What is")
    assert (score.value, score.outcome) == (1.0, Outcome.CORRECT)
    assert score.parts["exact"] == 1.0
    assert score.parts["length"] == len(task.answer)
    assert envs.check(environment, 6).ok


def test_its_evaluation_set_is_held_out() -> None:
    aside = [{"question": "What is 99 + 1?", "answer": "100"}, ROWS[3]]
    environment = from_verifiers(single(eval_dataset=Dataset.from_list(aside)))
    held_out = environment.tasks.held_out(2)
    assert [task.answer for task in held_out] == ["100", "4"]
    trained = {environment.tasks.train(i).answer for i in range(60)}
    assert trained == {row["answer"] for row in ROWS} - {"4"}


class Guess(vf.MultiTurnEnv):
    """Says higher or lower until the number is found."""

    async def setup_state(self, state: Any) -> Any:
        state["found"] = False
        return state

    @vf.stop
    async def number_found(self, state: Any) -> bool:
        return bool(state["found"])

    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        said, wanted = int(messages[-1].content), int(state["answer"])
        if said == wanted:
            state["found"] = True
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if said < wanted else "lower"}]


def test_a_v0_environment_of_several_turns_drives_its_own_loop() -> None:
    def found(state: Any) -> float:
        return float(state["found"])

    environment = from_verifiers(
        Guess(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[found]), max_turns=4)
    )
    task = environment.tasks.train(0)
    wanted = int(task.answer)
    messages, score = play(environment, [str(wanted - 1), str(wanted + 1), str(wanted)])
    assert [m["content"] for m in messages if m["role"] == "user"][1:] == ["higher", "lower"]
    assert (score.value, score.parts["num_turns"]) == (1.0, 3.0)
    _, score = play(environment, [str(wanted - 1)] * 4)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)
    with pytest.raises(Exception, match="invalid literal"):  # the environment's own error
        play(environment, ["many"])


def test_v0_tools_are_ours_and_their_results_come_back() -> None:
    def add(a: int, b: int) -> int:
        """The sum.

        Args:
            a: first
            b: second
        """
        return a + b

    environment = from_verifiers(
        vf.ToolEnv(dataset=Dataset.from_list(ROWS), rubric=rubric(), tools=[add], max_turns=4)
    )
    task = environment.tasks.train(0)
    env = environment.make()
    (tool,) = env.tools()  # type: ignore[attr-defined]
    assert (tool.name, sorted(tool.parameters["properties"])) == ("add", ["a", "b"])
    n = int(task.answer) - 1
    messages, score = play(environment, [called("add", a=n, b=1), task.answer])
    result = next(m for m in messages if m["role"] == "tool")
    assert (result["content"], result["name"]) == (task.answer, "add")
    assert score.outcome is Outcome.CORRECT


def test_a_rubric_that_compares_a_group_is_refused() -> None:
    def best(completions: Any) -> list[float]:
        return [1.0 for _ in completions]

    group = vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[best]))
    with pytest.raises(UsageError, match="group of rollouts"):
        from_verifiers(group)


class Sum(v1.TaskData):
    answer: str


class SumTask(v1.Task[Sum]):
    @v1.reward(weight=1.0)
    async def exact(self, trace: Any) -> float:
        return float(trace.last_reply == self.data.answer)

    @v1.metric
    async def words(self, trace: Any) -> float:
        return float(len(trace.last_reply.split()))


class Sums(v1.Taskset[SumTask, v1.TasksetConfig]):
    task_kind: type = SumTask

    def load(self) -> Iterable[SumTask]:
        for number, row in enumerate(ROWS):
            question, answer = row["question"], row["answer"]
            data = Sum(idx=number, prompt=question, system_prompt="Add.", answer=answer)
            yield self.task_kind(data, self.config.task)


def test_a_v1_task_set_is_judged_by_its_rewards() -> None:
    environment = from_verifiers(Sums(v1.TasksetConfig(id="sums")))
    task = environment.tasks.train(0)
    messages, score = play(environment, [f"{task.answer} "])
    assert messages[0] == {"role": "system", "content": "Add."}
    assert (score.value, score.outcome) == (1.0, Outcome.CORRECT)
    assert score.parts == {"exact": 1.0, "words": 1.0}
    assert envs.check(environment, 6).ok


class NeedsRuntime(SumTask):
    @v1.reward(weight=1.0)
    async def ran(self, runtime: Any) -> float:
        return 1.0


class NeedsSetup(SumTask):
    async def setup(self, trace: Any, runtime: Any) -> None: ...


class NeedsContainer(SumTask):
    NEEDS_CONTAINER = True


@pytest.mark.parametrize(
    ("kind", "why"),
    [(NeedsRuntime, "runtime"), (NeedsSetup, "setup or finalize"), (NeedsContainer, "container")],
)
def test_v1_tasks_that_need_a_runtime_are_refused(kind: type, why: str) -> None:
    taskset = Sums(v1.TasksetConfig(id="sums"))
    taskset.task_kind = kind
    with pytest.raises(UsageError, match=why):
        from_verifiers(taskset)


OLD = """
import verifiers as vf
from datasets import Dataset

def exact(completion, answer):
    return float(completion[-1]["content"] == answer)

def load_environment(answer="7"):
    rubric = vf.Rubric(funcs=[exact])
    rows = [{"question": f"{n}: say it", "answer": answer} for n in range(9)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=rubric)
"""
NEW = """
import verifiers.v1 as vf

__all__ = ["Words"]

class Word(vf.TaskData):
    answer: str

class WordTask(vf.Task[Word]):
    @vf.reward
    async def exact(self, trace) -> float:
        return float(trace.last_reply == self.data.answer)

class WordsConfig(vf.TasksetConfig):
    answer: str = "7"

class Words(vf.Taskset[WordTask, WordsConfig]):
    INFINITE = True

    def load(self):
        for n in range(1_000_000):
            yield WordTask(Word(prompt=f"{n}: say it", answer=self.config.answer), self.config.task)
"""


def test_both_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("old_words", OLD), ("new_words", NEW)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name, more in (("old-words", {}), ("new-words", {"limit": 9})):
        environment = envs.load(f"verifiers:{name}", seed=1, answer="8", **more)
        assert environment.name == f"verifiers:{name}"
        assert len({environment.tasks.train(i).task_id for i in range(9)}) > 5
        assert play(environment, ["8"])[1].value == 1.0
        assert play(environment, ["7"])[1].value == 0.0
    with pytest.raises(UsageError, match="has no end"):
        envs.load("verifiers:new-words")
    with pytest.raises(UsageError, match="can't be loaded"):
        envs.load("verifiers:there-is-none")
