"""Environments over a sandbox session, on bubblewrap (``tests/rewards`` has them on Docker)."""

from __future__ import annotations

import pytest

import envs
from envs import UsageError
from envs.workspace import without
from rewards import Outcome
from rewards.sandbox import Sandbox, SandboxError
from tests.envs.playing import call, play, told

SUM = {
    "prompt": "Write sum.py: it prints the sum of the numbers it reads.",
    "files": {"notes/a.txt": "hello"},
    "checks": [
        {"command": "python3 sum.py", "stdin": "1 2", "stdout": "3"},
        {"command": "python3 test.py", "files": {"test.py": "from sum import add\n"
                                                            "assert add([2, 3]) == 5\n"}},
    ],
}  # fmt: skip
RIGHT = """def add(numbers):
    return sum(numbers)
if __name__ == "__main__":
    print(add(map(int, input().split())))
"""


def workspace(box: Sandbox, **row):
    return envs.load("workspace", tasks=[SUM | row], sandbox=box, call_s=2.0)


def test_files_left_by_the_model_are_judged_by_hidden_checks(box: Sandbox) -> None:
    steps = play(
        workspace(box),
        [
            call("shell", command="cat notes/a.txt; ls; cd notes"),
            call("write_file", path="sum.py", content=RIGHT),
            call("shell", command="pwd"),
            "done",
        ],
    )
    assert told(steps[0]) == "hellonotes\n"  # no check is to be seen
    assert told(steps[2]) == "/box/work/notes\n"
    score = steps[-1].score
    assert score is not None
    assert (score.value, score.outcome) == (1.0, Outcome.CORRECT)
    assert score.parts == {"checks_passed": 1.0}


def test_a_check_that_fails_is_wrong_and_named(box: Sandbox) -> None:
    half = RIGHT.replace("sum(numbers)", "3")
    (_, done) = play(workspace(box), [call("write_file", path="sum.py", content=half), "done"])
    assert done.score is not None
    assert (done.score.value, done.score.outcome) == (0.0, Outcome.WRONG)
    assert done.score.parts == {"checks_passed": 0.5}
    assert "AssertionError" in done.score.detail
    (untouched,) = play(workspace(box), ["I do not know"])
    assert untouched.score is not None
    assert untouched.score.value == 0.0


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        ("mkdir test.py; ln -s / sum.py", "sum.py"),  # in the way of a check's file
        ("for i in $(seq 3000); do echo > $i; done; yes | head -c 1000 > x", ""),  # too many
        ("kill -9 -1", "lost"),  # the session itself
        ("mkdir -p $(printf 'a/%.0s' $(seq 50)); mkfifo sum.py", ""),
    ],
)
def test_what_the_model_does_to_its_folder_is_wrong_and_never_unjudged(
    box: Sandbox, command: str, detail: str
) -> None:
    step, done = play(workspace(box), [call("shell", command=command), "done"])
    assert done.score is not None
    assert (done.score.value, done.score.outcome) == (0.0, Outcome.WRONG)
    assert detail in done.score.detail or detail in told(step)


def test_an_interpreter_keeps_state_until_a_call_is_out_of_time(box: Sandbox) -> None:
    rows = [{"prompt": "?", "answer": "42", "files": {"n": "41"}}]
    environment = envs.load(
        "interpreter", tasks=rows, reward="exact", sandbox=box, call_s=5.0, held_out_percent=0
    )
    steps = play(
        environment,
        [
            call("python", code="n = int(open('n').read())"),
            call("python", code="n + 1"),
            call("python", code="while True: pass"),
            call("python", code="n"),
            call("shell", command="cat n; exit 3"),
            "42",
        ],
    )
    assert told(steps[1]) == "42\n"
    assert "killed after 5 s: variables, the shell's folder and processes are lost" in told(
        steps[2]
    )
    assert steps[2].info["tool_errors"] == 1
    assert "NameError" in told(steps[3]) and "[exit code 1]" in told(steps[3])
    assert "ended by itself" in told(steps[4]) and "41" in told(steps[4])
    assert steps[5].score is not None
    assert steps[5].score.outcome is Outcome.CORRECT


class Broken:
    """A sandbox that fails."""

    name, layers = "broken", ()

    def session(self, files=None, limits=None):
        raise SandboxError("the engine is gone")

    def run(self, program):
        raise SandboxError("the engine is gone")


def test_a_sandbox_that_fails_leaves_the_episode_unjudged() -> None:
    environment = envs.load("workspace", tasks=[SUM], sandbox=Broken())
    with pytest.raises(envs.ToolFailure, match="the engine is gone"):
        play(environment, [call("shell", command="ls")])
    (done,) = play(environment, ["done"])
    assert done.score is not None
    assert (done.score.value, done.score.outcome) == (None, Outcome.ERROR)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"checks": []}, "checks"),
        ({"checks": [{"cmd": "x"}]}, "it needs a command"),
        ({"checks": [{"command": "x", "stdut": "1"}]}, "unknown field 'stdut'. Did you mean"),
        ({"checks": [{"command": "x", "stdout": 1}]}, "stdout is a text"),
        ({"files": {"../a": ""}}, "plain relative path"),
        ({"files": ["a"]}, "files is a mapping"),
    ],
)
def test_rows_that_are_no_task_are_refused_at_once(row: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why.replace(".", r"\.")):
        envs.load("workspace", tasks=[SUM | row], sandbox=Broken())


def test_a_checks_files_take_the_place_of_whatever_is_there() -> None:
    left = {"test.py": b"", "test.py/a": b"", "data": b"", "other": b"", "data2/x": b""}
    assert set(without(left, {"test.py": b"", "data/in.txt": b""})) == {"other", "data2/x"}
