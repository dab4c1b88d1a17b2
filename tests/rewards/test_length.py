"""Lengths in tokens: DAPO's soft punishment and the cosine reward, against numbers by hand."""

import asyncio

import pytest

import rewards
from rewards import Case, Outcome, Score, UsageError
from rewards.length import overlong


def words(text):
    return text.split()


def right(completion, answer):
    return completion.split()[-1] == answer


def judged(reward, completion, answer="x", **columns):
    return asyncio.run(rewards.apply(reward, Case("p", completion, answer, (), columns)))


@pytest.mark.parametrize(
    ("length", "value"),
    [
        # max 20480, buffer 4096, as in the paper: no punishment up to 16384
        (0, 0.0),
        (16384, 0.0),
        (16385, -1 / 4096),  # (16384 - 16385) / 4096
        (17408, -0.25),  # (16384 - 17408) / 4096
        (18432, -0.5),
        (20480, -1.0),
        (20481, -1.0),
        (10**9, -1.0),
    ],
)
def test_the_soft_overlong_punishment(length, value):
    score = overlong("", 20480, 4096, n_tokens=length)
    assert score.value == value
    assert score.outcome is (Outcome.CORRECT if value == 0 else Outcome.WRONG)
    assert score.parts == {"n_tokens": float(length)}


def test_the_length_is_a_column_or_is_counted():
    reward = rewards.load("overlong", max_tokens=4, buffer=2, tokenizer=words)
    assert judged(reward, "a b c").value == -0.5
    assert judged(reward, "a b c", n_tokens=4).value == -1.0
    bare = rewards.load("overlong", max_tokens=4, buffer=2)
    assert rewards.required_columns(bare) == frozenset()
    assert judged(bare, "a b c", n_tokens=3).value == -0.5
    score = judged(bare, "a b c")
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert "needs a column n_tokens or a setting tokenizer=" in score.detail


def test_a_checkpoint_folder_counts_tokens(tmp_path):
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    for path in (str(tmp_path), str(tmp_path / "tokenizer.json")):
        reward = rewards.load("overlong", max_tokens=4, buffer=4, tokenizer=path)
        assert judged(reward, "a b a").value == -0.75
    with pytest.raises(UsageError, match="no tokenizer can be read from"):
        rewards.load("overlong", max_tokens=4, buffer=4, tokenizer=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("completion", "value", "outcome"),
    [
        # right: from 2 to 1 over 8 tokens, 1 + (1 + cos(pi t / 8)) / 2
        ("x", 1.9619397662556434, Outcome.CORRECT),  # t = 1: 1 + 1.9238795 / 2
        ("a b c x", 1.5, Outcome.CORRECT),  # t = 4: cos is 0
        # wrong: from -10 to 0, 0 + (-10) * (1 + cos(pi t / 8)) / 2
        ("a b c d", -5.0, Outcome.WRONG),
        ("a b c d e f", -1.4644660940672627, Outcome.WRONG),  # t = 6: 1 - 0.7071068, times -5
        ("a b c d e f g x", -3.0, Outcome.CORRECT),  # the limit, right or wrong
        ("a b c d e f g h i", -3.0, Outcome.WRONG),
    ],
)
def test_the_cosine_reward(completion, value, outcome):
    reward = rewards.load(
        "cosine",
        of=right,
        max_tokens=8,
        right=(2.0, 1.0),
        wrong=(-10.0, 0.0),
        exceeded=-3.0,
        tokenizer=words,
    )
    score = judged(reward, completion)
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.outcome is outcome
    assert score.parts["value"] == float(outcome is Outcome.CORRECT)


def test_the_cosine_reward_keeps_what_it_wraps():
    def broken(completion, difficulty):
        raise RuntimeError("no")

    reward = rewards.load("cosine", of=broken, max_tokens=8, tokenizer=words)
    assert rewards.required_columns(reward) == {"difficulty"}
    assert judged(reward, "x", difficulty=1).outcome is Outcome.ERROR
    exact = rewards.load("cosine(of='exact', max_tokens=8)")
    assert judged(exact, "x", n_tokens=0) == Score(
        1.0, Outcome.CORRECT, {"value": 1.0, "n_tokens": 0.0}
    )
    score = judged(exact, "x")
    assert score.outcome is Outcome.ERROR
    assert "needs a column n_tokens" in score.detail
    assert asyncio.run(exact("p", "x", "x", n_tokens=0)).value == 1.0
