"""The final number of a completion, and GSM8K's gold."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Outcome, Score, gsm8k
from rewards.math import final_number, gold_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("6 * 12 = 72\n#### 72", "72"),
        ("#### $1,000.00", "1000"),
        ("#### 72 dollars.", "72"),
        ("#### -3", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("#### 10%", "10"),
        ("#### .5", "0.5"),
        ("####\n\n18\n", "18"),
        ("#### 18\nThat was 3 steps.", "18"),
        ("#### 5\n#### 6", "6"),
        ("So the answer is 5 apples.", "5"),
        ("The Answer is: 1,234,567.", "1234567"),
        ("the answer is 5. I used 3 steps.", "5"),
        ("the answer is 2.5.", "2.5"),
        ("\\boxed{42}", "42"),
        ("\\boxed{\\$42}", "42"),
        ("\\boxed{3} no, \\boxed{4}", "4"),
        ("#### 1 and \\boxed{2}", "2"),
        ("72", "72"),
        (" 72. ", "72"),
        ("<think>#### 4</think>5", "5"),
        ("<think>a</think><think>b</think>the answer is 7", "7"),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seven",
        "It costs 7",  # nothing marks it
        "7 or 8",
        "#### 7 or 8",
        "#### 5-3",
        "#### 3/4",
        "#### 2^10",
        "#### x2",
        "#### 1,00",
        "#### 1 000",
        "#### -",
        "#### " + "9" * 41,
        "\\boxed{",
        "\\boxed{7",
        "\\boxed{}",
        "<think>#### 5",
        "#### 5 <think>",
        "answer is 5, or 6",
    ],
)
def test_no_final_number(text):
    assert final_number(text) is None
    assert gsm8k(text, "#### 5") == Score(0.0, Outcome.UNPARSEABLE)


def test_scores():
    gold = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 1,072"
    assert gsm8k("#### 1072.0", gold) == Score(1.0, Outcome.CORRECT)
    assert gsm8k("#### 1073", gold) == Score(0.0, Outcome.WRONG, detail="1073 is not 1072")
    assert gsm8k("-1072", gold).outcome is Outcome.WRONG
    assert gsm8k("the answer is 5", 5) == Score(1.0, Outcome.CORRECT)


@pytest.mark.parametrize("gold", ["", "none", "#### ", None, "#### 1 or 2"])
def test_a_gold_without_a_number_is_an_error_of_the_data(gold):
    with pytest.raises(ValueError, match="the gold answer holds no number"):
        gold_number(gold)


@given(st.text(alphabet="0123456789,.$-+ #{}\\boxedanswris<think/>\n%", max_size=200))
def test_any_text_is_read_without_an_exception(text):
    number = final_number(text)
    assert number is None or number.is_finite()


@pytest.mark.parametrize(
    "text",
    ["1," * 200_000, "#### " + "1" * 400_000, "answer is" * 50_000, "#### " + "1,111" * 80_000],
)
def test_hostile_lengths_take_no_time(text):
    started = time.perf_counter()
    assert final_number(text) is None
    assert time.perf_counter() - started < 2
