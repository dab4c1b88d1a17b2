"""The permutation: every place once, another order for another key, no order left to see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.permutation import permuted


@settings(max_examples=40)
@given(st.integers(1, 600), st.integers(0, 2**63), st.text(max_size=5))
def test_every_place_is_taken_once(size: int, seed: int, name: str) -> None:
    found = permuted(np.arange(size), size, seed, name)
    assert sorted(found.tolist()) == list(range(size))


def test_a_part_of_it_is_what_the_whole_says() -> None:
    whole = permuted(np.arange(1000), 1000, 7)
    places = np.array([999, 3, 3, 500])
    assert permuted(places, 1000, 7).tolist() == whole[places].tolist()


def test_it_looks_random() -> None:
    """A row's place and neighbour say nothing of where it goes (5 sigma)."""
    size = 20_000
    found = permuted(np.arange(size), size, 1).astype(float)
    bound = 5 / np.sqrt(size)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < bound
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < bound
    other = permuted(np.arange(size), size, 2).astype(float)
    assert abs(np.corrcoef(found, other)[0, 1]) < bound
    assert (found == np.arange(size)).sum() < 10  # one is to be expected


@pytest.mark.parametrize("place", [-1, 10])
def test_a_place_outside_is_refused(place: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.9"):
        permuted(np.array([place]), 10, 1)


def test_it_works_at_sizes_no_memory_would_hold() -> None:
    size = 2**62 - 57
    found = permuted(np.array([0, 1, size - 1]), size, 1)
    assert len(set(found.tolist())) == 3
    assert (found < size).all() and (found >= 0).all()
