"""``posttrain inspect``: the rollouts asked for, in order, as harmless text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs import EndReason
from posttrain.cli import main
from posttrain.config import GrpoConfig
from posttrain.report.inspect import printable
from posttrain.report.rollouts import message_text
from posttrain.storage.run_dir import RunDir
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

VALUES = (0.5, 0.0, None, 1.0)
OUTCOMES = (Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.CORRECT)


def rollout(sample: int, task: str) -> Rollout:
    empty = np.array([1])
    completion = Completion(empty, np.zeros(1, np.float32), empty, FinishReason.STOP)
    said = f"said {sample} of {task} [red]\x1b[2J"
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": said})
    score = Score(VALUES[sample], OUTCOMES[sample], {}, "")
    turns = (Turn(empty, completion),)
    return Rollout(f"{sample}", task, sample, turns, messages, score, EndReason.DONE, 0.1, 0.1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = GrpoConfig.model_validate({"model": "m", "env": "e"})
    with RunDir.create(tmp_path / "r", config) as run:
        for step in (0, 1):
            members = [tuple(rollout(i, task) for i in range(4)) for task in ("a", "b")]
            run.seal_step(step, [Group(step, prompt, m) for prompt, m in enumerate(members)])
        run.append_group(Group(2, 0, (rollout(0, "a"),)))
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--step 1 --worst 3", ["1 of a", "1 of b", "0 of a"]),
        ("--step 1 --best 2", ["3 of a", "3 of b"]),
        ("--step 0 --best 8 --task b", ["3 of b", "0 of b", "1 of b", "2 of b"]),
        ("--step 0 --outcome timeout", ["2 of a", "2 of b"]),
        ("", ["0 of a"]),  # the last step, though it is not finished
    ],
)
def test_what_was_asked_for_in_order(
    run: Path, given: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), *given.split()]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("said")]
    assert said == [f"said {text} [red]\\x1b[2J" for text in expected]


def test_how_many_more_fit_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--step", "0", "--worst", "3"]) == 0
    assert capsys.readouterr().out.endswith("5 more of step 0 fit\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--step 7", "no rollouts of step 7: it has 3, from 0 to 2"),
        ("--outcome good", "no outcome 'good'; there are: correct, wrong"),
        ("--step 0 --task c", "its tasks a, b"),
    ],
)
def test_what_is_not_there_says_what_is(
    run: Path, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), *given.split()]) == 2
    assert said in capsys.readouterr().err


def test_no_text_moves_the_cursor() -> None:
    assert printable("a\tb\n\x1b]0;x\x07\r\x9b日\u202e") == "a\tb\n\\x1b]0;x\\x07\\r\\x9b日\\u202e"


def test_a_message_shows_its_tool_calls() -> None:
    call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 2, "b": 3}}}
    both = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert message_text(both) == "call: multiply {'a': 2, 'b': 3}"
    torn = {"role": "assistant", "content": "So", "invalid_tool_calls": ["it is not closed"]}
    assert message_text(torn) == "So\nunreadable call: it is not closed"
    assert message_text({"role": "tool", "content": None}) == ""
