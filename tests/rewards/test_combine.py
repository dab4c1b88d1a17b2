"""Several rewards as one."""

import asyncio

import pytest

import rewards
from rewards import Case, Outcome, Score, UsageError
from rewards.registry import check_row

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
    score = judged(rewards.combine([right, slow]), timeout_s=0.5)
    assert (score.value, score.outcome, score.parts) == (None, Outcome.TIMEOUT, {"right": 1.0})
    assert judged(rewards.combine([broken, slow]), timeout_s=0.5).outcome is Outcome.ERROR


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


# names of one's own


def test_one_function_twice_under_names_of_their_own():
    both = rewards.combine({"plain": (half, 1.0), "again": (half, -0.5), right: 1.0})
    assert judged(both) == Score(1.25, Outcome.WRONG, {"plain": 0.5, "again": 0.5, "right": 1.0})


def test_a_named_part_may_be_a_registered_name_with_settings():
    combined = rewards.combine({"digits": (r"regex(pattern='^\\d+$')", 2.0)})
    assert judged(combined) == Score(2.0, Outcome.CORRECT, {"digits": 1.0})


# gates


def never():
    raise AssertionError("called although a gate was not passed")


def test_a_passed_gate_adds_nothing_and_is_kept():
    score = judged(rewards.combine({half: 2.0}, gates=[right]))
    assert score == Score(1.0, Outcome.WRONG, {"half": 0.5, "right": 1.0})


def test_what_stands_behind_a_gate_that_is_not_passed_is_never_called():
    score = judged(rewards.combine({"part": (never, 1.0)}, gates=[half, never], floor=-1.0))
    assert score == Score(-1.0, Outcome.WRONG, {"half": 0.5}, "gate 'half' was not passed")


def test_a_gate_gives_its_own_outcome_and_parts():
    score = judged(rewards.combine([never], gates=[right, unparseable]))
    assert (score.value, score.outcome) == (0.0, Outcome.UNPARSEABLE)
    assert score.parts == {"right": 1.0, "unparseable": 0.0, "unparseable/tags": 0.25}


def test_a_gate_that_could_not_be_judged_leaves_the_whole_unjudged():
    score = judged(rewards.combine([never], gates=[broken]))
    assert (score.value, score.outcome, score.parts) == (None, Outcome.ERROR, {})
    assert "RuntimeError: no" in score.detail
    score = judged(rewards.combine([never], gates=[slow]), timeout_s=0.05)
    assert score.outcome is Outcome.TIMEOUT


def test_gates_are_judged_in_their_order():
    called = []

    def first():
        called.append("first")
        return True

    def second():
        called.append("second")
        return True

    assert judged(rewards.combine([right], gates={"b": first, "a": second})).value == 1.0
    assert called == ["first", "second"]


def test_gates_ask_for_columns_and_have_names_too():
    combined = rewards.combine([right], gates=[half])
    assert rewards.required_columns(combined) == {"answer", "level"}
    assert combined.name == "half+right"
    with pytest.raises(UsageError, match="two rewards are named 'right'"):
        rewards.combine([right], gates=[right])
    with pytest.raises(UsageError, match="the floor must be a finite number"):
        rewards.combine([right], gates=[half], floor=float("nan"))
    with pytest.raises(UsageError, match="a list or mapping of rewards is needed"):
        rewards.combine([right], gates="half")


def test_the_format_must_hold_or_the_rest_is_not_counted():
    gated = rewards.combine({right: 1.0}, gates=["format"])
    case = Case("2+2?", "<think>2 and 2</think>4", "4")
    assert asyncio.run(rewards.apply(gated, case)).parts == {"right": 0.0, "format": 1.0}
    case = Case("2+2?", "4", "4")
    score = asyncio.run(rewards.apply(gated, case))
    assert (score.value, score.parts) == (0.0, {"format": 0.0})
    assert "<think> is there 0 times" in score.detail


# rows


def test_a_combination_checks_rows_for_its_parts_and_gates():
    combined = rewards.combine(["exact"], gates={"shape": rewards.load("format")})
    check_row(combined, {"answer": "4"})
    with pytest.raises(UsageError, match="reward 'exact': the gold answer '' is empty"):
        check_row(combined, {"answer": ""})
