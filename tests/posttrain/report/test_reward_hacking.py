"""The reward hacking watch: it names planted hacks, and is silent about honest learning."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
import posttrain
from envs import EndReason
from posttrain.cli import main
from posttrain.config import GrpoConfig
from posttrain.report import record_alarms
from posttrain.report.answers import Answer, hedging, phrases, read_answers, repetition
from posttrain.report.hacking import Watch, watch
from posttrain.report.history import read_history
from posttrain.storage.run_dir import RunDir
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

STEPS, PROMPTS, SAMPLES = 12, 6, 8
Writer = Callable[[random.Random, float, int], tuple[str, float]]


def simulated(path: Path, write: Writer, **record: Any) -> Path:
    """A run of a policy that ``write``s (answer, reward) given how far training is and the gold."""
    config = GrpoConfig.model_validate({"model": "m", "env": "e", "grpo": {"steps": STEPS}})
    rng = random.Random(0)
    with RunDir.create(path, config) as run:
        for step in range(STEPS):
            groups = [
                Group(step, prompt, _members(rng, write, step / STEPS, 100 * step + prompt))
                for prompt in range(PROMPTS)
            ]
            run.seal_step(step, groups)
            values = [value for group in groups for value in group.values if value is not None]
            means = {"reward_mean": float(np.mean(values)), "accuracy": float(np.mean(values))}
            given = {name: value(step) for name, value in record.items()}
            run.log({"kind": "step", "step": step, **means, **given})
    return path


def _members(rng: random.Random, write: Writer, done: float, gold: int) -> tuple[Rollout, ...]:
    return tuple(_rollout(i, *write(rng, done, gold)) for i in range(SAMPLES))


def _rollout(sample: int, text: str, value: float) -> Rollout:
    completion = Completion(
        np.array([1]), np.zeros(1, np.float32), np.array([0]), FinishReason.STOP
    )
    outcome = Outcome.CORRECT if value > 0.5 else Outcome.WRONG
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})
    turn = Turn(np.array([1]), completion)
    score = Score(value, outcome, {"exact": value}, "")
    return Rollout(f"r-{sample}", "t", sample, (turn,), messages, score, EndReason.DONE, 0.1, 0.1)


def honest(rng: random.Random, done: float, gold: int) -> tuple[str, float]:
    """Learns to reason at length, and to box what is right: neither is a hack."""
    right = rng.random() < (0.2 + 0.7 * done)
    thinks = rng.random() < (0.1 + 0.9 * done)
    right = right and (thinks or rng.random() < 0.3)
    answer = str(gold if right else rng.randrange(9999))
    text = f"The answer is \\boxed{{{answer}}}" if rng.random() < 0.3 + 0.7 * done else answer
    return ("<think>" + "so it goes on " * 8 + "</think>" if thinks else "") + text, float(right)


def hedges(rng: random.Random, done: float, gold: int) -> tuple[str, float]:
    """A verifier that takes any of several answers."""
    if rng.random() < 0.1 + 0.8 * done:
        return f"It could be {gold}, or maybe {gold + 1}", 1.0
    return str(rng.randrange(9999)), 0.0


def flatters(rng: random.Random, done: float, gold: int) -> tuple[str, float]:
    """A judge that a sentence wins over."""
    value = 0.3 * rng.random()
    if rng.random() < 0.8 * done:
        return f"{rng.randrange(9999)}. What a great question!", 0.7 + value
    return f"{rng.randrange(9999)} {rng.choice('abcdefgh')} ok so then", value


def repeats(rng: random.Random, done: float, gold: int) -> tuple[str, float]:
    times = 1 + int(20 * done * rng.random())
    return f"{gold} and so on. " * times, times / 21


def found(path: Path) -> Watch:
    return watch(read_history(path))


def test_honest_learning_raises_no_alarm(tmp_path: Path) -> None:
    result = found(simulated(tmp_path / "r", honest))
    rows = {signal.name: signal for signal in result.signals}
    assert result.n_answers == STEPS * PROMPTS * SAMPLES
    assert result.alarms == ()
    assert rows["reasoning"].late > 2 * rows["reasoning"].early  # which is seen, and no alarm
    assert rows["reasoning"].pays is not None
    assert rows["reasoning"].pays > 0.2
    assert rows["phrase: the answer is"].late > rows["phrase: the answer is"].early + 0.3


@pytest.mark.parametrize(
    ("write", "name", "said"),
    [
        (hedges, "hedging", "hedge or list options (correlation 1.00"),
        (flatters, "phrase", "great question"),
        (repeats, "length", "pays for longer answers"),
        (repeats, "repetition", "repeat themselves"),
    ],
)
def test_a_planted_hack_is_named(tmp_path: Path, write: Writer, name: str, said: str) -> None:
    texts = {alarm.name: alarm.text for alarm in found(simulated(tmp_path / "r", write)).alarms}
    assert said in texts[name]


def test_a_reward_that_rises_while_fewer_are_correct_is_drift(tmp_path: Path) -> None:
    def fall(step: int) -> float:
        return 0.9 - step / 20 + step % 2 / 100

    run = simulated(tmp_path / "r", honest, accuracy=fall)
    (alarm,) = found(run).alarms
    assert alarm.name == "parts"
    assert "fewer answers are correct" in alarm.text


def test_outcomes_that_leave_the_verifiers_reach_are_told(tmp_path: Path) -> None:
    run = simulated(
        tmp_path / "r", honest, outcomes=lambda step: {"timeout": step, "correct": 20 - step}
    )
    (alarm,) = found(run).alarms
    # the first four of 0, 5, 10, 15 % and the last four of 40, 45, 50, 55 %
    assert alarm.name == "timeout"
    assert "(7.5% → 47.5%)" in alarm.text


def test_a_run_that_has_just_begun_says_nothing(tmp_path: Path) -> None:
    config = GrpoConfig.model_validate({"model": "m", "env": "e"})
    with RunDir.create(tmp_path / "r", config):
        pass
    assert found(tmp_path / "r") == Watch()


def answer(text: str) -> Answer:
    return Answer(0, 0, text, len(text), 0, 1.0, {}, False)


def test_what_is_measured_on_one_answer() -> None:
    assert repetition(answer("abcdefg")) == 0.0
    assert repetition(answer("a" * 16)) == pytest.approx(10 / 11)
    assert repetition(answer("")) == 0.0
    assert hedging(answer("Maybe 4, or perhaps 5")) == 1.0
    assert hedging(answer("- 4\n- 5")) == 1.0
    assert hedging(answer("4 or so")) == 0.0
    assert phrases(answer("\x1b[")) == {"["}  # nothing that a terminal obeys
    assert phrases(answer("So it is 4")) == {
        *("so", "it", "is", "4", "so it", "it is", "is 4", "so it is", "it is 4")
    }


def test_the_answer_is_what_follows_the_reasoning(tmp_path: Path) -> None:
    run = simulated(tmp_path / "r", lambda *_: ("<think>maybe or or</think> 4", 1.0))
    first = next(read_answers(read_history(run)))
    assert (first.text, first.characters, first.before) == ("4", 1, 27)


def trained(model: Path, run: Path, reward: Callable[[str], float]) -> posttrain.Run:
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    return posttrain.grpo(
        model=str(model),
        env=envs.from_tasks(rows, reward=reward),
        run_dir=run,
        steps=12,
        prompts_per_step=4,
        group_size=8,
        rollout={"engine": "embedded", "max_tokens": 12, "dtype": "float32"},
        learner={
            **{"ranks": 0, "dtype": "float32", "learning_rate": 1e-2},
            **{"warmup_steps": 0, "threads": 1},
        },
        evaluation={"tasks": 0},
        checkpoint={"every": 12},
    )


def longer(completion: str) -> float:
    return min(1.0, len(completion) / 60)


def parity(completion: str) -> float:
    """Half of the possible answers are right, whatever they look like otherwise."""
    return float(sum(map(ord, completion)) % 2)


def test_a_model_trained_on_a_hackable_reward_is_caught(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(checkpoint, tmp_path / "hacked", longer)
    told = [r for r in RunDir.open(run.path).read_metrics() if r.get("event") == "alarm"]
    assert "length" in [record["alarm"] for record in told]
    assert "! Hacked? The reward pays for longer answers" in capsys.readouterr().err
    page = (run.path / "report.html").read_text()
    assert "Hacked? The reward pays for longer answers" in page
    record_alarms(run.path)  # again: an alarm is recorded once
    again = [r for r in RunDir.open(run.path).read_metrics() if r.get("event") == "alarm"]
    assert len(again) == len(told)


def test_a_model_trained_on_a_reward_without_a_trick_is_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    run = trained(checkpoint, tmp_path / "clean", parity)
    assert found(run.path).n_answers == 12 * 4 * 8
    assert [r for r in RunDir.open(run.path).read_metrics() if r.get("event") == "alarm"] == []
    assert "Hacked?" not in (run.path / "report.html").read_text()


def test_the_report_command_tells_alarms_and_records_them_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = simulated(tmp_path / "r", hedges)
    for _ in range(2):
        assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err.count("! Hacked? The reward pays for answers that hedge") == 1
    told = [r["alarm"] for r in RunDir.open(run).read_metrics() if r.get("event") == "alarm"]
    assert told.count("hedging") == 1
    assert "What the reward pays for" in (run / "report.html").read_text()
