"""The mixture: exact shares in each block, caps that hold, every row of a source once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.mixture import Mixture, capped, quotas

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


def test_decimal_shares_are_exact_in_every_block() -> None:
    mixture = Mixture.of([0.6, 0.303, 0.097], 2_500, [False] * 3)
    assert mixture.block == 1000
    sources, _ = mixture.at(np.arange(2_500), 5)
    counts = [np.bincount(sources[at : at + 1000]).tolist() for at in (0, 1000, 2000)]
    # the last 500: 300, 151.5, 48.5, and the first of two equal remainders gets the row
    assert counts == [[600, 303, 97], [600, 303, 97], [300, 152, 48]]


@settings(max_examples=50)
@given(WEIGHTS, st.integers(1, 4000), st.integers(0, 99))
def test_the_rows_of_each_source_come_in_order_and_without_gap(
    weights: list[int], rows: int, seed: int
) -> None:
    shares = [weight / sum(weights) for weight in weights]
    mixture = Mixture.of(shares, rows, [False] * len(shares))
    sources, numbers = mixture.at(np.arange(rows), seed)
    assert mixture.counts.sum() == rows
    for source, count in enumerate(mixture.counts):
        assert numbers[sources == source].tolist() == list(range(count))
        blocks = -(-rows // mixture.block)
        assert abs(count - shares[source] * rows) < blocks + 1


def test_a_rare_source_has_its_part_of_a_block() -> None:
    mixture = Mixture.of([0.9998, 0.0002], 200_000, [False] * 2)
    assert (mixture.block, mixture.whole.tolist()) == (100_000, [99_980, 20])


def test_what_a_cap_cuts_off_goes_to_the_others_in_proportion() -> None:
    # 0.5 is cut to 0.2; the 0.3 is shared 2 : 1, which lifts the last over its 0.25
    assert capped([0.5, 1 / 3, 1 / 6], [0.2, 9.0, 0.25]) == pytest.approx([0.2, 0.55, 0.25])
    assert capped([0.5, 0.5], [0.2, 0.7]) is None
    assert capped([0.5, 0.5], [0.3, 0.7]) == pytest.approx([0.3, 0.7])


@given(WEIGHTS, st.lists(st.floats(0, 2), min_size=6, max_size=6))
def test_caps_hold(weights: list[int], limits: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    limits = limits[: len(shares)]
    found = capped(shares, limits)
    if found is None:
        assert sum(limits) < 1 + 1e-9
        return
    assert sum(found) == pytest.approx(1)
    assert all(share <= limit + 1e-9 for share, limit in zip(found, limits, strict=True))


@given(WEIGHTS, st.integers(0, 5000))
def test_quotas_sum_up_and_are_the_shares_to_a_row(weights: list[int], rows: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    found = quotas(shares, rows, [False] * len(shares))
    assert sum(found) == rows
    assert all(abs(n - share * rows) < 1 for n, share in zip(found, shares, strict=True))


def test_a_limited_source_is_not_rounded_up() -> None:
    assert quotas([0.58, 0.42], 10, [True, False]) == [5, 5]
    assert quotas([0.58, 0.42], 10, [False, False]) == [6, 4]
