"""Penalties for repetition, against numbers by hand."""

import pytest

import rewards
from rewards import Outcome, UsageError
from rewards.repetition import compressibility, repetition, words


def test_words_of_scripts_with_and_without_spaces():
    assert words("It's 3.5, ça VA") == ["it", "s", "3", "5", "ça", "va"]
    assert words("我们abc们") == ["我", "们", "abc", "们"]


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("a b a b a", 2, -0.5),  # ab ba ab ba: 2 of 4 were there before
        ("a b a b a", 1, -0.6),  # 2 distinct of 5
        ("a b a b a", 3, -1 / 3),  # aba bab aba
        ("a b a b a", 5, 0.0),
        ("a b a b a", 9, 0.0),
        ("a, A. a!", 1, -2 / 3),
        ("x " * 100, 20, -80 / 81),  # 81 grams, one distinct
        ("", 1, 0.0),
        ("one two three four", 2, 0.0),
        ("我们我们", 2, -1 / 3),
    ],
)
def test_share_of_grams_that_were_there_before(text, n, value):
    score = repetition(text, n=n)
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.outcome is (Outcome.CORRECT if value == 0 else Outcome.WRONG)


@pytest.mark.parametrize("n", range(1, 12))
def test_grams_by_doubling_are_the_grams(n):
    found = list("abracadabraabracadabra")
    plain = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    share = len(set(plain)) / len(plain) - 1
    assert repetition(" ".join(found), n=n).value == pytest.approx(share, abs=1e-12)


def test_n_must_be_a_count():
    with pytest.raises(UsageError, match="n must be a whole number of at least 1, got 0"):
        rewards.load("repetition", n=0)


def test_a_loop_within_a_word_compresses():
    loop = "ab" * 500
    assert repetition(loop).value == 0.0
    assert compressibility(loop).value == -1.0
    assert compressibility(loop).parts["ratio"] > 30
    prose = "Janet has 16 eggs, eats three and bakes with four, so nine are left to sell."
    assert compressibility(prose).value == 0.0
    assert compressibility("").value == 0.0
    assert compressibility(loop, limit=1000.0).value == 0.0
