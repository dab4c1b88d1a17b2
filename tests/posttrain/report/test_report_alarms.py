"""Over-optimisation: a training reward that rises while the held-out result falls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import GrpoConfig
from posttrain.held_out import wilson
from posttrain.report import write_report
from posttrain.report.alarms import alarms
from posttrain.report.history import History
from posttrain.storage.run_dir import RunDir


def evaluation(step: int, accuracy: float, reward: float = 0.0, n: int = 200) -> dict[str, Any]:
    low, high = wilson(accuracy, n)
    return {
        "kind": "eval", "step": step, "phase": "during", "n_tasks": n, "accuracy": accuracy,
        "accuracy_low": low, "accuracy_high": high, "mean_reward": reward,
    }  # fmt: skip


def history(
    reward: Callable[[int], float], *evals: dict[str, Any], steps: int = 60, std: float = 0.5
) -> History:
    noise = (0.05, -0.05, 0.02, -0.02)
    records = [
        {"step": s, "reward_mean": reward(s) + noise[s % 4], "reward_std": std}
        for s in range(steps)
    ]
    return History(None, {}, {}, steps=records, evals=list(evals))  # type: ignore[arg-type]


def rising(step: int) -> float:
    return 1.0 + step / 30


def test_a_rising_reward_with_a_falling_accuracy_is_told_from_its_peak_on() -> None:
    (text,) = alarms(history(rising, evaluation(0, 0.3), evaluation(20, 0.8), evaluation(60, 0.5)))
    # the steps around 20 are 15 to 24: mean 1.65, and 0.003 of noise; the last ten, 50 to 59: 2.817
    assert "From step 20 to 60 the training reward rises (1.653 → 2.817)" in text
    assert "held-out accuracy falls (80.0% → 50.0%)" in text


def test_the_held_out_reward_counts_too() -> None:
    # with a spread of 0.5 and 200 tasks a mean is known to +-0.069
    evals = (evaluation(0, 0.0, 1.0), evaluation(30, 0.0, 1.5), evaluation(60, 0.0, 1.3))
    (text,) = alarms(history(rising, *evals))
    assert "held-out mean reward falls (1.500 → 1.300)" in text
    close = (evaluation(0, 0.0, 1.0), evaluation(30, 0.0, 1.5), evaluation(60, 0.0, 1.4))
    assert alarms(history(rising, *close)) == []


@pytest.mark.parametrize(
    ("reward", "accuracies"),
    [
        (rising, (0.3, 0.5, 0.8)),  # both rise
        (rising, (0.3, 0.80, 0.75)),  # a fall within chance
        (lambda step: 2.0, (0.3, 0.8, 0.5)),  # no rise
        (lambda step: 2.0 - step / 30, (0.8, 0.5, 0.3)),  # both fall
        (rising, (0.8,)),  # nothing to compare
    ],
)
def test_anything_else_is_no_alarm(
    reward: Callable[[int], float], accuracies: tuple[float, ...]
) -> None:
    evals = [evaluation(30 * i, accuracy) for i, accuracy in enumerate(accuracies)]
    assert alarms(history(reward, *evals)) == []


def test_a_run_without_steps_or_evaluations_has_no_alarm() -> None:
    assert alarms(history(rising, steps=0)) == []
    assert alarms(history(rising, evaluation(0, 0.9), evaluation(60, 0.1), steps=0)) == []


def test_the_page_says_it_at_the_top(tmp_path: Path) -> None:
    config = GrpoConfig.model_validate({"model": "m", "env": "e", "grpo": {"steps": 20}})
    with RunDir.create(tmp_path / "run", config, {"name": "e"}) as run:
        for step in range(20):
            run.log({"kind": "step", "step": step, "reward_mean": rising(step) + step % 2 / 50})
        run.log(evaluation(0, 0.9))
        run.log(evaluation(20, 0.2))
    page = write_report(tmp_path / "run").read_text()
    assert '<p class="problem">Over-optimised? From step 0 to 20 the training reward' in page
