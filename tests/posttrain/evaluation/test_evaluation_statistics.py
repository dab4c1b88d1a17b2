"""Estimators against numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.evaluation.statistics import Vote, bootstrap_interval, majority_at_k, paired_test

A, B, RIGHT, NONE = (
    Vote("a", False),
    Vote("b", False),
    Vote("c", True),
    Vote(None, False),
)


def test_majority_by_hand() -> None:
    # of {c, c, a}: c has two of three
    assert majority_at_k([RIGHT, RIGHT, A], 3) == 1.0
    # pairs: cc -> 1, ca -> 1/2, ca -> 1/2; mean 2/3
    assert majority_at_k([RIGHT, RIGHT, A], 2) == pytest.approx(2 / 3, abs=1e-12)
    assert majority_at_k([RIGHT, RIGHT, A], 1) == pytest.approx(2 / 3, abs=1e-12)
    # three-way tie
    assert majority_at_k([RIGHT, A, B], 3) == pytest.approx(1 / 3, abs=1e-12)
    # no answer has no vote: one right answer beats three without any
    assert majority_at_k([RIGHT, NONE, NONE, NONE], 4) == 1.0
    assert majority_at_k([NONE, NONE], 2) == 0.0
    # a wrong majority: 1 of 4 right, any three hold at most one right and two wrong alike
    assert majority_at_k([RIGHT, A, A, A], 3) == 0.0
    with pytest.raises(ValueError, match="1 <= k <= n"):
        majority_at_k([RIGHT], 2)


def test_majority_of_many_is_near_the_enumeration() -> None:
    votes = [RIGHT] * 9 + [A] * 8 + [B] * 7
    # C(24, 5) = 42,504 subsets: sampled. The same by counting (hypergeometric), ties by lot:
    exact = 0.0
    for c, a in itertools.product(range(6), range(6)):
        b = 5 - c - a
        if b < 0 or c > 9 or a > 8 or b > 7:
            continue
        ways = math.comb(9, c) * math.comb(8, a) * math.comb(7, b)
        most = max(a, b, c)
        if c == most:
            exact += ways / [a, b, c].count(most)
    exact /= math.comb(24, 5)
    assert majority_at_k(votes, 5) == pytest.approx(exact, abs=0.02)


def test_the_interval_of_equal_values_is_a_point_and_covers_a_coin() -> None:
    assert bootstrap_interval([0.5] * 10) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    # the standard error of a fair coin over 400 tasks is 0.025; 1.96 of them is 0.049
    assert low == pytest.approx(0.451, abs=0.005)
    assert high == pytest.approx(0.549, abs=0.005)
    with pytest.raises(ValueError, match="at least one task"):
        bootstrap_interval([])


def test_sign_flips_by_hand() -> None:
    # differences 1, 1, 1: of eight sign patterns two have |sum| = 3, so p = 2/8
    result = paired_test([0, 0, 0], [1, 1, 1])
    assert (result.difference, result.p_value) == (1.0, 0.25)
    # 1, 1, -1: |sum| >= 1 always, so p = 1
    assert paired_test([0, 0, 1], [1, 1, 0]).p_value == 1.0
    # tasks without a difference say nothing: five differing of a hundred, 2/2^5
    same, better = [0.0] * 100, [1.0] * 5 + [0.0] * 95
    result = paired_test(same, better)
    assert result.p_value == pytest.approx(2 / 32, abs=1e-12)
    assert result.difference == pytest.approx(0.05)
    assert paired_test([1.0], [1.0]).p_value == 1.0
    with pytest.raises(ValueError, match="equally many"):
        paired_test([1.0], [])


def test_many_differences_agree_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(400)
    b = a + rng.normal(0.01, 0.1, 400)
    result = paired_test(a.tolist(), b.tolist())
    z = (b - a).mean() / ((b - a).std() / math.sqrt(400))
    expected = math.erfc(abs(z) / math.sqrt(2))
    assert result.p_value == pytest.approx(expected, abs=0.02)
    assert result.low < result.difference < result.high
