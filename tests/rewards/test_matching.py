"""Exact and fuzzy match, patterns, and what counts as the answer."""

import asyncio

import pytest

import rewards
from rewards import Outcome, Score, UsageError
from rewards.answer_text import after_thinking, answer_text, few_marks
from rewards.matching import MAX_CHARS, exact, fuzzy, normal, regex
from rewards.registry import check_row


@pytest.mark.parametrize(
    ("completion", "tag", "found"),
    [
        ("4", "", "4"),
        ("<think>5</think> 4 ", "", "4"),
        ("<think>5</think><think>6</think>4", "", "4"),
        ("<think>4", "", None),
        ("<think>5</think>6<think>4", "", None),
        ("<think>4</think>", "", None),
        ("", "", None),
        ("so <answer> 4 </answer>.", "answer", "4"),
        ("<answer>4</answer><answer>5</answer>", "answer", None),
        ("<answer>4", "answer", None),
        ("</answer>4<answer>", "answer", None),
        ("<think><answer>4</answer></think>5", "answer", None),
        ("<answer> </answer>", "answer", None),
    ],
)
def test_the_answer_stands_after_the_thinking(completion, tag, found):
    assert answer_text(completion, tag) == found


def test_no_thinking_is_all_answer():
    assert after_thinking("4 </think> 5") == " 5"
    assert after_thinking(" 4 ") == " 4 "


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("**Paris.**", "paris"),
        ("  The\n  ANSWER ", "the answer"),
        ("“Straße”", "strasse"),
        ("ﬁve²", "five2"),
        ("３.５", "3.5"),
        ("-4", "-4"),
        ("'Is it?'!", "is it"),
        ("c#", "c#"),
        ("...", ""),
        ("e\u0301", "é"),
    ],
)
def test_the_normal_form(text, form):
    assert normal(text) == form


@pytest.mark.parametrize(
    ("completion", "answer", "value", "outcome"),
    [
        ("<think>Lyon?</think>**Paris**.", "paris", 1.0, Outcome.CORRECT),
        ("Paris", ["Lyon", "Paris"], 1.0, Outcome.CORRECT),
        ("4.0", 4.0, 1.0, Outcome.CORRECT),
        ("It is Paris", "Paris", 0.0, Outcome.WRONG),
        ("4.0", 4, 0.0, Outcome.WRONG),
        ("", "Paris", 0.0, Outcome.UNPARSEABLE),
        ("<think>Paris", "Paris", 0.0, Outcome.UNPARSEABLE),
        ("...", "Paris", 0.0, Outcome.WRONG),
        ("x" * (MAX_CHARS + 1), "x", 0.0, Outcome.WRONG),
        ("ﷺ" * MAX_CHARS, "x", 0.0, Outcome.WRONG),  # 18 letters each in normal form
    ],
)
def test_exact(completion, answer, value, outcome):
    score = exact(completion, answer)
    assert (score.value, score.outcome) == (value, outcome)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "'' is empty"),
        ("  ", "is empty"),
        ('"."', "is empty"),
        (None, "must be text or a number, got None"),
        (True, "must be text or a number, got True"),
        ([], "is an empty list"),
        (["Paris", ""], "is empty"),
        ({"a": 1}, "must be text or a number"),
        ("x" * (MAX_CHARS + 1), f"is longer than {MAX_CHARS} characters"),
    ],
)
@pytest.mark.parametrize("reward", ["exact", "fuzzy"])
def test_an_empty_gold_is_told_when_the_row_is_loaded_and_is_never_right(reward, answer, why):
    with pytest.raises(UsageError, match=f"reward '{reward}': the gold answer .*{why}"):
        check_row(rewards.load(reward), {"answer": answer})
    score = asyncio.run(rewards.apply(reward, rewards.Case("p", "", answer)))
    assert (score.value, score.outcome) == (None, Outcome.ERROR)


def test_fuzzy_is_one_minus_edits_over_both_lengths():
    # "kitten" and "sitten": one letter out and one in, of 12: 1 - 2/12
    assert fuzzy("Kitten", "sitten").value == pytest.approx(1 - 2 / 12)
    assert fuzzy("kitten", ["x", "kitten"]) == Score(1.0, Outcome.CORRECT)
    assert fuzzy("kitten", "sitten", at_least=0.9) == Score(0.0, Outcome.WRONG)
    assert fuzzy("kitten", "sitten", at_least=0.8).value == pytest.approx(5 / 6)
    assert fuzzy("", "kitten").outcome is Outcome.UNPARSEABLE


def test_regex_finds_or_matches_the_whole():
    assert regex("<think>7</think>the 42", r"\d+") == Score(1.0, Outcome.CORRECT)
    assert regex("<think>7</think>the", r"\d+") == Score(0.0, Outcome.WRONG)
    assert regex("the 42", r"\d+", whole=True) == Score(0.0, Outcome.WRONG)
    assert regex("<a>42</a>!", r"\d+", tag="a", whole=True) == Score(1.0, Outcome.CORRECT)
    assert regex("", r"\d*").outcome is Outcome.UNPARSEABLE


def test_a_pattern_that_would_run_forever_is_a_time_out_and_holds_up_nobody():
    evil = rewards.load("regex", pattern="(x+x+)+y")

    async def run():
        ticks = 0
        case = rewards.Case("p", "x" * 50_000)
        judging = asyncio.create_task(rewards.apply(evil, case))
        while not judging.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, await judging

    ticks, score = asyncio.run(run())
    assert (score.value, score.outcome) == (None, Outcome.TIMEOUT)
    assert "within 0.5 s" in score.detail
    assert ticks > 10  # the event loop ran on meanwhile


def test_the_pattern_may_be_a_column_of_every_row():
    assert rewards.required_columns(rewards.load("regex")) == {"pattern"}
    with pytest.raises(UsageError, match=r"the pattern '\[' cannot be compiled"):
        check_row(rewards.load("regex"), {"pattern": "["})


def test_marks_beyond_thirty_in_a_row_are_dropped():
    assert few_marks("a" + "\u0301" * 100 + "b") == "a" + "\u0301" * 30 + "b"
    assert few_marks("é ¨ x") == "é ¨ x"
