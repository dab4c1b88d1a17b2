"""The shape of a completion."""

import pytest

from rewards import Outcome
from rewards.format import format


@pytest.mark.parametrize(
    ("completion", "amiss"),
    [
        ("<think>a</think>b", ""),
        (" \n<think>\na\n</think>\n\nb\n", ""),
        ("b", "<think> is there 0 times, not once"),
        ("<think>a", "</think> is there 0 times, not once"),
        ("a</think>b", "<think> is there 0 times, not once"),
        ("<think>a</think>b<think>", "<think> is there 2 times, not once"),
        ("<think>a</think></think>b", "</think> is there 2 times, not once"),
        ("x<think>a</think>b", "text stands before <think>"),
        ("</think>b<think>", "text stands before <think>"),
        ("<think> \n</think>b", "nothing stands in <think>"),
        ("<think>a</think> \n", "the answer is empty"),
        ("<THINK>a</THINK>b", "<think> is there 0 times, not once"),
        ("", "<think> is there 0 times, not once"),
    ],
)
def test_one_closed_thinking_section_and_an_answer(completion, amiss):
    score = format(completion)
    assert (score.value, score.detail) == (0.0 if amiss else 1.0, amiss)
    assert score.outcome is (Outcome.WRONG if amiss else Outcome.CORRECT)


@pytest.mark.parametrize(
    ("completion", "amiss"),
    [
        ("<think>a</think><answer>b</answer>", ""),
        ("<think>a</think>\n<answer>b</answer>\n", ""),
        ("<think>a</think>b", "<answer> is there 0 times, not once"),
        ("<think>a</think>b<answer>c</answer>", "text stands before <answer>"),
        ("<think>a</think><answer>b</answer>c", "text stands after </answer>"),
        ("<think>a</think><answer> </answer>", "the answer is empty"),
        ("<think>a</think></answer>b<answer>", "text stands before <answer>"),
    ],
)
def test_an_answer_in_tags_of_its_own(completion, amiss):
    assert format(completion, answer_tag="answer").detail == amiss


def test_tags_are_a_setting_and_a_template_may_have_opened_the_section():
    assert format("<reason>a</reason>b", thinking_tag="reason").value == 1.0
    assert format("a</think>b", opened=True).value == 1.0
    assert format("<think>a</think>b", opened=True).value == 0.0
    assert format("</think>b", opened=True).detail == "nothing stands in <think>"
