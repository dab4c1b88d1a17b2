"""Several rewards as one."""

import asyncio

import pytest

import rewards
from rewards import Case, Outcome, Score, UsageError

CASE = Case("2+2?", "4", "4", (), {"level": 3})


def right(completion, answer):
    return completion == answer


def half(level):
    return 0.5


def unparseable():
    return Score(0.0, Outcome.UNPARSEABLE, {"tags": 0.25})


def broken():
    raise RuntimeError("no")


async def slow():
    await asyncio.sleep(30)


def judged(reward, timeout_s=5.0):
    return asyncio.run(rewards.apply(reward, CASE, timeout_s=timeout_s))


def test_the_weighted_sum_with_its_parts():
    # 1 * 1 + 0.2 * 0.5 = 1.1; the first part is correct
    score = judged(rewards.combine({right: 1.0, half: 0.2}))
    assert score == Score(1.1, Outcome.CORRECT, {"right": 1.0, "half": 0.5})


def test_a_list_weighs_one_each_and_the_first_decides_the_outcome():
    assert judged(rewards.combine([half, right])) == Score(
        1.5, Outcome.WRONG, {"half": 0.5, "right": 1.0}
    )
    assert judged(rewards.combine([unparseable, right])) == Score(
        1.0, Outcome.UNPARSEABLE, {"unparseable": 0.0, "unparseable/tags": 0.25, "right": 1.0}
    )


def test_a_part_that_could_not_be_judged_leaves_the_whole_unjudged():
    score = judged(rewards.combine([right, broken]))
    assert (score.value, score.outcome, score.parts) == (None, Outcome.ERROR, {"right": 1.0})
    assert "RuntimeError: no" in score.detail
    score = judged(rewards.combine([right, slow]), timeout_s=0.05)
    assert (score.value, score.outcome, score.parts) == (None, Outcome.TIMEOUT, {"right": 1.0})
    assert judged(rewards.combine([broken, slow]), timeout_s=0.05).outcome is Outcome.ERROR


def test_combinations_nest_and_can_be_registered():
    inner = rewards.register("combine_test_inner")(rewards.combine({right: 2.0, half: 1.0}))
    score = judged(rewards.combine({"combine_test_inner": 1.0, half: -1.0}))
    assert score.value == pytest.approx(2.0 + 0.5 - 0.5)
    assert score.parts == {
        "combine_test_inner": 2.5,
        "combine_test_inner/right": 1.0,
        "combine_test_inner/half": 0.5,
        "half": 0.5,
    }
    assert rewards.required_columns(inner) == {"answer", "level"}


def test_a_combination_can_be_called_like_a_function():
    score = asyncio.run(rewards.combine([right, half])("2+2?", "4", "4", level=3))
    assert score.value == 1.5


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "at least one"),
        ({right: float("nan")}, "finite number"),
        ({right: "1"}, "finite number"),
        ([right, right], "two rewards are named 'right'"),
        (["gsm8kk"], "Did you mean 'gsm8k'"),
        ([0.5], "a reward is a function"),
    ],
)
def test_bad_combinations(parts, why):
    with pytest.raises(UsageError, match=why):
        rewards.combine(parts)


def test_a_sum_that_overflows_is_an_error():
    score = judged(rewards.combine({right: 1.0, (lambda: 1e308): 10.0}))
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
