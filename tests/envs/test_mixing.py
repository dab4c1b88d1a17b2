"""Mixtures keep their proportions and their random access; curricula leave held-out tasks alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import Curriculum, Mixture, Task, UsageError, pass_rates
from envs.mixing import BLOCK


class Counted:
    """Task ``i`` of source ``a`` is ``a-i``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def train(self, index: int) -> Task:
        return Task(f"{self.name}-{index}", (envs.user(f"{self.name} {index}"),))

    def held_out(self, n: int) -> list[Task]:
        return [
            Task(f"{self.name}-h{i}", (envs.user(f"held out {self.name} {i}"),)) for i in range(n)
        ]


def ids(source: envs.TaskSource, some: range) -> list[str]:
    return [source.train(index).task_id for index in some]


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_each_block_holds_the_weights_and_each_source_goes_on_in_order(
    weights: list[int], seed: int
) -> None:
    mixed = Mixture([(Counted(str(i)), w) for i, w in enumerate(weights)], seed=seed)
    got = ids(mixed, range(2 * BLOCK))
    for first in (0, BLOCK):
        counts = Counter(one.split("-")[0] for one in got[first : first + BLOCK])
        for i, weight in enumerate(weights):
            assert abs(counts[str(i)] - BLOCK * weight / sum(weights)) < 1.0
    for i in range(len(weights)):  # nothing of a source is left out or comes twice
        own = [one for one in got if one.startswith(f"{i}-")]
        assert own == [f"{i}-{n}" for n in range(len(own))]


def test_a_mixture_has_random_access_and_depends_on_its_seed() -> None:
    def made(seed: int) -> Mixture:
        return Mixture([(Counted("a"), 3.0), (Counted("b"), 1.0)], seed=seed)

    whole = ids(made(1), range(3000))
    assert ids(made(1), range(2500, 2600)) == whole[2500:2600]
    assert ids(made(2), range(100)) != whole[:100]
    assert [t.task_id for t in made(0).held_out(3)] == ["a-h0", "b-h0", "a-h1"]
    assert made(0).held_out(0) == []


@pytest.mark.parametrize(
    ("weights", "said"), [([], "at least one"), ([1.0, 0.0], "source 1"), ([1.0, 1e-9], "1000")]
)
def test_a_mixture_that_cannot_be(weights: list[float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Mixture([(Counted("a"), weight) for weight in weights])


def test_a_curriculum_keeps_what_is_neither_always_nor_never_solved() -> None:
    scores = [("a-0", 0.0)] * 4 + [("a-1", 1.0)] * 4 + [("a-2", 1.0)] * 3 + [("a-2", 0.0)]
    scores += [("a-3", 0.0)] * 3 + [("a-3", None)] * 5  # judged three times: not known yet
    rates = pass_rates(scores)
    assert rates == {"a-0": (0, 4), "a-1": (4, 4), "a-2": (3, 4), "a-3": (0, 3)}
    kept = Curriculum(Counted("a"), rates | {"a-h0": (4, 4)})
    assert ids(kept, range(5)) == ["a-104729", "a-104730", "a-2", "a-3", "a-4"]
    assert [task.task_id for task in kept.held_out(2)] == ["a-h0", "a-h1"]


def test_a_curriculum_with_nothing_left_says_so() -> None:
    class One(Counted):
        def train(self, index: int) -> Task:
            return super().train(0)

    with pytest.raises(UsageError, match="always or never"):
        Curriculum(One("a"), {"a-0": (0, 8)}).train(0)
