import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.advantages import ADVANTAGES, grpo


def test_grpo_by_hand():
    # rewards 1, 0, 0, 1: mean 1/2, sample variance (4 * 1/4) / 3 = 1/3, deviation 0.57735
    # (1 - 1/2) / (0.57735 + 0.0001) = 0.865875
    assert grpo([1.0, 0.0, 0.0, 1.0]) == pytest.approx(
        [0.865875, -0.865875, -0.865875, 0.865875], abs=1e-6
    )


def test_an_unjudged_sample_is_absent_not_zero():
    # without the None: rewards 1, 0: mean 1/2, deviation sqrt(1/2) = 0.707107
    advantages = grpo([1.0, None, 0.0])
    assert advantages[1] is None
    assert advantages[0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))
    assert advantages[2] == pytest.approx(-0.5 / (math.sqrt(0.5) + 1e-4))


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.3, None, 0.3], [0.7], [None, None], []])
def test_a_group_without_signal_has_no_gradient(rewards):
    assert grpo(rewards) == [None if reward is None else 0.0 for reward in rewards]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.floats(-5, 5))
def test_advantages_sum_to_zero_and_ignore_a_shift(rewards, shift):
    advantages = [a for a in grpo(rewards) if a is not None]
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-6)
    if max(rewards) - min(rewards) > 1e-3:  # below that, adding the shift rounds the signal away
        assert grpo([r + shift for r in rewards]) == pytest.approx(advantages, abs=1e-6)


def test_registry():
    assert ADVANTAGES["grpo"] is grpo
