"""Win rates where the truth is known, and the whole command against a scripted judge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import EndReason
from posttrain.cli import main
from posttrain.errors import UsageError
from posttrain.evaluation.answers import paired, read_answers, shown
from posttrain.evaluation.votes import read_votes
from posttrain.evaluation.win_rate import win_rate
from posttrain.storage.rollout_files import RolloutFiles
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score
from tests.rewards.judge_server import MODEL, JudgeServer


def verdicts(theta: float, phi: float, n: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Drawn from the model; a writes 300 characters more than b on average."""
    rng = np.random.default_rng(1)
    lengths = np.stack([rng.integers(500, 1500, n), rng.integers(200, 1200, n)], axis=1)
    longer = lengths[:, 0] - lengths[:, 1]
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(longer / longer.std()))))
    taken = (rng.random(n) < chance).astype(float)
    return taken.tolist(), [(int(a), int(b)) for a, b in lengths]


@pytest.mark.parametrize(("theta", "phi"), [(-0.4, 1.5), (0.6, 0.0), (0.3, -1.0)])
def test_the_true_preference_is_found_behind_the_length(theta: float, phi: float) -> None:
    taken, lengths = verdicts(theta, phi, 3000)
    found = win_rate(taken, lengths)
    truth = 1 / (1 + math.exp(-theta))
    low, high = found.length_controlled_interval
    assert 0.02 < high - low < 0.06  # four standard errors of sqrt(p (1 - p) / 3000), or wider
    assert abs(found.length_controlled - truth) < 0.75 * (high - low)  # three standard errors
    assert found.length_effect == pytest.approx(phi, abs=0.2)
    assert found.win_rate == np.mean(taken)
    if phi == 1.5:  # length alone makes the worse model win
        assert found.length_controlled < 0.45 < 0.5 < found.win_rate


def test_the_other_way_round_is_the_complement() -> None:
    taken, lengths = verdicts(0.2, 0.7, 300)
    one = win_rate(taken, lengths)
    other = win_rate([1 - y for y in taken], [(b, a) for a, b in lengths])
    assert one.length_controlled + other.length_controlled == pytest.approx(1, abs=1e-9)
    assert one.win_rate + other.win_rate == pytest.approx(1, abs=1e-12)
    assert one.length_effect == pytest.approx(other.length_effect, abs=1e-9)


def test_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    found = win_rate([1, 1, 1, 0, 0.5], [(7, 7)] * 5)
    assert found.length_controlled == pytest.approx(0.7, abs=1e-6)
    assert found.length_effect == 0 and found.length_ratio == 1


def test_one_that_takes_everything_stays_finite() -> None:
    found = win_rate([1.0] * 40, [(i, 20) for i in range(1, 41)])
    assert 0.999 < found.length_controlled <= 1 and math.isfinite(found.length_effect)
    with pytest.raises(ValueError, match="0 verdicts"):
        win_rate([], [])


def write(path: Path, answers: dict[str, str], **more: Any) -> Path:
    rows = [{"prompt": prompt, "completion": text} | more for prompt, text in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prefers_long(asked: Any) -> str:
    first, second = asked.text("first"), asked.text("second")
    if "unsure" in first + second:
        return str(asked.verdict(better="first"))  # whatever stands first: a tie when swapped
    if "broken" in first + second:
        return "no verdict"
    return str(asked.verdict(better="first" if len(first) > len(second) else "second"))


def test_the_command_from_answers_to_votes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewards.http.FIRST_WAIT_S", 0.01)
    a = {"q1": "a long answer", "q2": "no", "q3": "unsure", "q4": "broken", "only a": "x"}
    b = {"q1": "short", "q2": "<think>hm</think>yes, of course", "q3": "maybe", "q4": "z"}
    files = [str(write(tmp_path / f"{n}.jsonl", one)) for n, one in (("new", a), ("old", b))]
    out = tmp_path / "votes.jsonl"
    with JudgeServer(prefers_long) as server:
        judge = ["--url", server.url, "--model", MODEL, "--out", str(out)]
        assert main(["judge-pairs", *files, *judge]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert main(["judge-pairs", *files, *judge]) == 2
        assert "exists" in capsys.readouterr().err
    votes = read_votes(out)
    assert [(v.a, v.b, v.winner, v.task) for v in votes] == [
        ("new", "old", "a", "q1"),
        ("new", "old", "b", "q2"),
        ("new", "old", "tie", "q3"),
    ]
    assert (printed["n"], printed["unjudged"], printed["win_rate"]) == (3, 1, 0.5)
    assert printed["flipped"] == pytest.approx(1 / 3)
    # lengths are those of what is behind the thinking: 13 + 2 + 6 over 5 + 14 + 5
    assert printed["length_ratio"] == pytest.approx(21 / 24)


def test_answers_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    a = read_answers(write(tmp_path / "a.jsonl", {"q": "1"}))
    with pytest.raises(UsageError, match="no question in common"):
        paired(a, read_answers(write(tmp_path / "b.jsonl", {"other": "1"})))
    with pytest.raises(UsageError, match="both models are called 'a'"):
        paired(a, a)
    one = read_answers(write(tmp_path / "c.jsonl", {"q": "1"}, id=1))
    other = read_answers(write(tmp_path / "d.jsonl", {"another": "1"}, id=1))
    with pytest.raises(UsageError, match="asked different things as '1'"):
        paired(one, other)
    with pytest.raises(UsageError, match="two answers to '1'"):
        read_answers(write(tmp_path / "e.jsonl", {"q": "1", "r": "2"}, id=1))
    assert shown("<think>never ends") == ""


def test_answers_of_an_evaluation_are_those_of_its_rollouts(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    kept = {"benchmarks": {"gsm8k": {"templates": {"boxed": {}, "hash": {}}}}}
    (tmp_path / "eval.json").write_text(json.dumps(kept))
    files = RolloutFiles(tmp_path / "rollouts")
    asked = ({"role": "user", "content": "2+2?"},)
    told = ({"role": "system", "content": "short"}, *asked)
    for suite, messages in enumerate((asked, told)):
        said = (*messages, {"role": "assistant", "content": f"{suite}: 4"})
        turn = Turn(np.array([1]), Completion(*[np.array([5])] * 3, FinishReason.STOP))
        rollout = Rollout(
            "0-0-0", "0", 0, (turn,), said, Score(1.0, Outcome.CORRECT), EndReason.DONE
        )
        files.seal_step(suite, [Group(suite, 0, (rollout,))])
    files.close()
    assert read_answers(tmp_path, "x").answers == {
        "gsm8k/boxed 0": ("2+2?", "0: 4"),
        "gsm8k/hash 0": ("system: short\n\nuser: 2+2?", "1: 4"),
    }
