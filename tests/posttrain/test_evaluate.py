import math

import pytest

from envs import EndReason
from posttrain.held_out import pass_at_k, summarise, wilson
from posttrain.types import Group, Rollout
from rewards import Outcome, Score


def _rollout(index: int, score: Score) -> Rollout:
    return Rollout(f"0-0-{index}", "t", index, (), (), score, EndReason.DONE)


def _group(*scores: Score) -> Group:
    return Group(0, 0, tuple(_rollout(i, s) for i, s in enumerate(scores)))


RIGHT = Score(1.0, Outcome.CORRECT)
WRONG = Score(0.0, Outcome.WRONG)
LOST = Score(None, Outcome.ERROR, detail="the verifier was away")


def test_pass_at_k_by_hand():
    # 4 samples, 1 correct: two draws miss it in C(3,2)/C(4,2) = 3/6 of the cases
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    with pytest.raises(ValueError, match="1 <= k <= n"):
        pass_at_k(2, 1, 3)


def test_wilson_by_hand():
    # 8 of 10: the textbook interval is (0.490, 0.943)
    assert wilson(0.8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-4)
    assert wilson(0.0, 10)[0] == 0.0
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_summary_leaves_unjudged_samples_out():
    # task 1: 1 of 2 correct; task 2: 1 judged, correct; so (1/2 + 1)/2 = 3/4
    result = summarise([_group(RIGHT, WRONG), _group(RIGHT, LOST)], samples=2)
    assert result.accuracy == 0.75
    assert result.mean_reward == pytest.approx(2 / 3)
    assert result.outcomes == {"correct": 2, "wrong": 1, "error": 1}
    assert result.pass_at_k == {1: 0.75, 2: 1.0}  # pass@2 only over the task with two judged
    assert math.isclose(result.accuracy_low, wilson(0.75, 2)[0])


def test_nothing_judged_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="the verifier was away"):
        summarise([_group(LOST)], samples=1)
