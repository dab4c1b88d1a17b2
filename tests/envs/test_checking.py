"""What ``envs.check`` finds beyond one question and one answer, and its command."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import Step, Task
from posttrain.cli import main
from rewards import Outcome, Score
from tests.envs.episodes import called

ROWS = [{"prompt": f"Double {n}.", "answer": str(2 * n)} for n in range(1, 20)]
TASKS = envs.from_tasks(ROWS, reward="exact").tasks


class Double(envs.ToolEnv):
    """The answer counts only after the tool was called."""

    used = False

    def double(self, n: int) -> int:
        """2 n"""
        self.used = True
        return 2 * n

    def judge(self, message: Any) -> bool:
        return self.used and message["content"] == self.task.answer


def solve(task: Task, messages: Any) -> Any:
    results = [m["content"] for m in messages if m["role"] == "tool"]
    return results[-1] if results else called("double", n=int(task.answer) // 2)


def test_a_scripted_gold_policy_plays_tools() -> None:
    environment = envs.Episodes("double", TASKS, Double)
    assert envs.check(environment, 5, gold=solve).ok
    report = envs.check(environment, 5)
    assert {failure.check for failure in report.failures} == {"gold"}


class Once:
    """One turn that scores right; subclasses leave something behind."""

    def start(self, task: Task, *, seed: int) -> Any:
        self.answer = task.answer
        self.leave()
        return task.messages

    def step(self, message: Any) -> Step:
        right = message["content"] == self.answer
        outcome = Outcome.CORRECT if right else Outcome.WRONG
        return Step(score=Score(float(right), outcome), done=True)

    def leave(self) -> None: ...

    def close(self) -> None: ...


KEPT: list[Any] = []


def a_thread() -> None:
    stop = threading.Event()
    KEPT.append(stop)
    threading.Thread(target=stop.wait, args=(30,), daemon=True).start()


def a_process() -> None:
    KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))


def a_file() -> None:
    tempfile.mkdtemp()


def an_open_file() -> None:
    KEPT.append(Path("/dev/null").open())  # noqa: SIM115  it is the leak


@pytest.fixture(autouse=True)
def _let_go() -> Any:
    yield
    for one in KEPT:
        getattr(one, "set", lambda: None)()
        if isinstance(one, subprocess.Popen):
            one.communicate()
        getattr(one, "close", lambda: None)()
    KEPT.clear()


@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (a_thread, "threads"),
        (a_process, "processes"),
        (a_file, "temporary files"),
        (an_open_file, "open files"),
    ],
)
def test_what_close_leaves_behind_is_found(leave: Callable[[], None], what: str) -> None:
    kind = type("Leaves", (Once,), {"leave": lambda self: leave()})
    report = envs.check(envs.Episodes("leaves", TASKS, kind), 1, tasks=[TASKS.train(0)])
    assert report.count("left behind") >= 1
    assert any(what in failure.seen for failure in report.failures)
    assert envs.check(envs.Episodes("clean", TASKS, Once), 1).ok


def test_a_plain_step_that_hangs_meets_the_deadline() -> None:
    class Hangs(Once):
        @envs.instant  # in no thread: handing over to one may take 50 ms too
        def start(self, task: Task, *, seed: int) -> Any:
            return super().start(task, seed=seed)

        def step(self, message: Any) -> Step:
            time.sleep(0.4)
            return super().step(message)

        @envs.instant
        def close(self) -> None:
            super().close()

    task = TASKS.train(0)
    report = envs.check(envs.Episodes("hangs", TASKS, Hangs), tasks=[task], timeout_s=0.05)
    assert {"gold", "empty", "echo"} <= {failure.check for failure in report.failures}
    assert all("step gave no answer" in one.seen for one in report.failures if one.check == "gold")


def test_an_asyncio_task_that_runs_on_is_found() -> None:
    class Forgets(Once):
        async def start(self, task: Task, *, seed: int) -> Any:
            KEPT.append(asyncio.ensure_future(asyncio.sleep(30)))
            return super().start(task, seed=seed)

    report = envs.check(envs.Episodes("forgets", TASKS, Forgets), tasks=[TASKS.train(0)])
    assert "4 asyncio tasks after 4 episodes" in str(report)


FILE = """
import envs

def gold(task, messages):
    return task.answer

def good(n=9):
    rows = [{"prompt": f"Say {i}.", "answer": f"it is {i}"} for i in range(n)]
    return envs.from_tasks(rows, reward="exact", held_out_percent=0)

bad = envs.from_tasks([{"prompt": "Say it."}], reward=lambda completion: 1.0, held_out_percent=0)
"""


def test_the_command_prints_and_exits(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    assert main(["check-env", f"{file}:good", "n=5", "--tasks", "3", "--gold", "gold"]) == 0
    assert "3 tasks checked, 0 failures" in capsys.readouterr().out
    assert main(["check-env", f"{file}:bad", "--tasks", "1"]) == 1
    assert "empty of 0" in capsys.readouterr().err
    assert main(["check-env", f"{file}:none"]) == 2
    assert main(["check-env", "no-such-environment"]) == 2
