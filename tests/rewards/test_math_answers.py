"""Labelled pairs: equal and unequal answers, hostile ones, and where a response's answer stands."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Outcome, UsageError
from rewards.math import final_answer, score, score_batch
from rewards.math.audit import audit

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"


def rows(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def shown(row):
    return f"{row['gold'][:30]}|{row['pred'][:40]}".replace("\x00", "NUL")


def value(response, gold, *, bare):
    """The value, an unusable gold matching nothing."""
    try:
        return score(response, gold, bare=bare).value
    except UsageError:
        return 0.0


@pytest.mark.parametrize("row", rows("math_answers.jsonl"), ids=shown)
def test_answers(row):
    assert value(row["pred"], row["gold"], bare=True) == float(row["expected"]), row.get("note")


@pytest.mark.parametrize("row", rows("math_answers.jsonl"), ids=shown)
def test_a_boxed_answer_is_judged_like_a_bare_one(row):
    if "boxed" in row["pred"]:
        return
    response = f"So we have \\boxed{{{row['pred']}}}."
    expected = float(row["expected"])
    if row["pred"].count("{") != row["pred"].count("}") and row["expected"] is False:
        expected = 0.0
    assert value(response, row["gold"], bare=False) == expected


@pytest.mark.parametrize("row", rows("math_responses.jsonl"), ids=shown)
def test_responses(row):
    assert value(row["pred"], row["gold"], bare=False) == float(row["expected"]), row.get("note")


POLICY = (HERE.parents[1] / "docs" / "math.md").read_text().partition("## Policy")[2]


@pytest.mark.parametrize(
    ("gold", "sign", "pred"),
    re.findall(r"`([^`]+)` ([=≠]) `([^`]+)`", POLICY),
)
def test_the_policy_as_it_is_written_down(gold, sign, pred):
    judged = score(f"\\boxed{{{pred}}}", gold)
    assert judged.value == float(sign == "="), judged


def test_every_line_of_the_policy_has_an_example_of_each_kind():
    lines = [line for line in POLICY.splitlines() if line.startswith("| **")]
    assert len(lines) >= 25
    few = [line for line in lines if len(re.findall(r"` [=≠] `", line)) < 2]
    assert not few


LONG = {
    "a hundred thousand digits": "1" * 100_000,
    "as many decimals": "0." + "1" * 100_000,
    "brackets": "(" * 5000 + "1" + ")" * 5000,
    "fractions": r"\frac{" * 2000 + "1" + "}{1}" * 2000,
    "a long sum": "1+" * 9000 + "1",
    "signs": "-" * 5001 + "1",
    "left": r"\left(" * 800 + "1",
    "braces": "{" * 3000,
    "powers": "x^" * 1000 + "2",
    "roots": r"\sqrt" * 1900 + "2",
    "bars": "|" * 2001,
    "texts": r"\text{" * 500,
    "commas": "," * 20_000,
    "mathrm": r"\mathrm{+" * 440 + "}" * 440,
    "spaces": "42" + " " * 50_000 + "43",
    "thousands": "1" + ",000" * 900,
    "list": "1," * 1500 + "1",
    "matrix": r"\begin{pmatrix}" + "1&" * 900 + r"1\end{pmatrix}",
    "equals": "x=" * 1000 + "2",
    "unions": r"(0,1)\cup" * 300 + "(0,1)",
    "plus-minus": r"\pm" * 500 + "1",
    "roots of ten": r"\sqrt{10^{10^{10}}}",
    "exponentials": r"e^{e^{e^{e^{e^{e}}}}}",
    "a sine": r"\sin(10^{10^{8}})",
    "sums in sums": r"\sum_{i=1}^{100}\sum_{j=1}^{100}\sum_{k=1}^{100}\sum_{l=1}^{100} 1",
    "fewer unions": r"\cup".join(["[1,2]"] * 200),
    "products of matrices": r"\begin{pmatrix}x&1\\1&y\end{pmatrix}" * 40,
    "sets in sets": r"\{" * 8 + "1" + r",3\},\{3\}" * 7 + r"\}",
    "factorials": "3" + "!" * 1000,
    "percents": "3" + "\\%" * 700,
    "limits": r"\lim_{x\to 0}1" * 30,
    "empty braces": "{" * 20 + "}" * 20,
    "an integral": r"\int_0^1 x^{x^{x^{x}}} dx",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("gold", ["42", r"\sqrt{2}", r"\{1,2\}", "x^2+1"])
def test_hostile_answers_are_refused_quickly(text, gold):
    started = time.perf_counter()
    for response in (f"\\boxed{{{text}}}", text):
        judged = score(response, gold, bare=response is text)
        assert judged.value == 0.0
        assert judged.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE)
    assert time.perf_counter() - started < 4


LONG_RESPONSES = {
    "boxes": ("\\boxed{42}" * 5000, True),
    "open boxes": ("\\boxed{" * 20_000, False),
    "open braces": ("{" * 100_000 + "\\boxed{42}", True),
    "open braces inside": ("\\boxed{" + "{" * 100_000, False),
    "markers": ("answer is " * 20_000, False),
    "answer": ("answer " * 20_000, False),
    "prose": ("x" * 500_000 + "\\boxed{42}", True),
    "words": ("and so on, " * 40_000 + "\\boxed{42}", True),
    "thinking": ("<think>" * 50_000 + "\\boxed{42}", False),
    "thinking that ends": ("<think>" * 50_000 + "</think>\\boxed{42}", True),
    "dollars": ("$" * 99_999 + "\\boxed{42}", True),
    "bare boxes": ("\\boxed" * 30_000, False),
    "hashes": ("####" * 30_000 + "42", True),
    "fences": ("```python\n" * 20_001 + "\\boxed{42}", False),
    "lines behind": ("\\boxed{42}" + "\n" * 50_000, True),
    "gaps": (("\\boxed{42}" + " , " * 30) * 200, True),
    "tags": ("<answer>" * 40_000 + "42", False),
    "displays": ("\\[" * 50_000, False),
    "backslashes": ("\\" * 100_000, False),
}


@pytest.mark.parametrize(("response", "right"), LONG_RESPONSES.values(), ids=LONG_RESPONSES)
@pytest.mark.parametrize("bare", [False, True])
def test_long_responses_take_no_time(response, right, bare):
    started = time.process_time()
    assert score(response, "42", bare=bare).value == float(right)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("gold", ["", "  ", None, "$$", "\\boxed{}", "\u200b", ".", "\\text{}"])
def test_an_empty_gold_is_refused_by_name(gold):
    with pytest.raises(UsageError, match="gold answer is empty"):
        score("\\boxed{42}", gold)
    with pytest.raises(UsageError, match="gold answer is empty"):
        score_batch(["\\boxed{42}", "\\boxed{}"], ["42", gold])


def test_golds_may_be_numbers():
    assert score("\\boxed{7}", 7).value == 1.0
    assert score("\\boxed{0.5}", 0.5).value == 1.0


def test_what_is_no_text_is_refused():
    with pytest.raises(UsageError, match="a response is text, got int"):
        score(42, "42")
    with pytest.raises(UsageError, match="2 responses and 1 golds"):
        score_batch(["a", "b"], ["1"])


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1} and \boxed{2}", "1 , 2"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        ("#### 5 apples\nend", "5 apples"),
        ("the answer is $x = 5$.", "$x = 5$"),
        ("I think it is 5", None),
        (r"\boxed{5", None),
        (r"\boxed{a\}b}", r"a\}b"),
    ],
)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


ALPHABET = st.sampled_from(
    [
        "\\frac",
        "{",
        "}",
        "1",
        "2",
        "x",
        "+",
        "-",
        "^",
        "_",
        "(",
        ")",
        "[",
        "]",
        ",",
        "\\sqrt",
        "\\pm",
        "|",
        "\\{",
        "\\}",
        "=",
        "<",
        "\\le ",
        "%",
        "\\text{",
        "\\cup ",
        "\\infty",
        " and ",
        " or ",
        " ",
        "\\sin ",
        "!",
        "\\pi",
        "i",
        "e",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        ":",
        ".5",
        "1,000",
        "\\in ",
        "5 cm",
        "\\log_",
        "\\boxed{",
        "$",
        "/",
        "^\\circ",
        "\\approx ",
        "\x00",
        "½",
        "####",
        "answer is ",
        "\n",
    ]
)
TEXTS = st.lists(ALPHABET, min_size=1, max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_no_text_raises_and_the_two_sides_may_be_swapped(a, b):
    try:
        there, back = score(a, b, bare=True), score(b, a, bare=True)
    except UsageError:
        return
    assert there.value == back.value or None in (there.value, back.value), (there, back)
    assert there.outcome is not Outcome.ERROR, there


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_an_answer_equals_itself_when_it_is_read(a):
    try:
        judged = score(a, a, bare=True)
    except UsageError:
        return
    assert judged.value == 1.0 or judged.outcome is Outcome.UNPARSEABLE


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {name} in {DATA}")
    return path


def test_the_labelled_pairs_of_public_graders():
    report = audit([shared("math_cases.jsonl")])
    assert report["cases"] == 182
    assert report["accuracy"] >= 0.96
    assert report["false_positives"] == report["undecided"] == 0


def test_the_adversarial_pairs():
    report = audit([shared("math_adversarial.jsonl")])
    assert report["accuracy"] == 1.0
    assert report["slowest_s"] < 2


def test_audit_tells_misses_and_bad_files(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"gold": "1", "pred": "1", "equal": true}\n\n'
        '{"gold": "1", "pred": "1", "expected": false, "note": "wrong label"}\n'
        '{"gold": "1", "pred": "2", "equal": true}\n'
        '{"gold": "1", "pred": "2", "equal": true, "note": "SOFT"}\n'
        '{"gold": "", "pred": "", "equal": false}\n'
    )
    report = audit([file], show=True)
    assert {k: report[k] for k in ("cases", "accuracy", "false_positives", "false_negatives")} == {
        "cases": 5,
        "accuracy": 0.6,
        "false_positives": 1,
        "false_negatives": 1,
    }
    shown_misses = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in shown_misses] == ["false_positives", "false_negatives"]
    for content, message in [
        ("{", "rows.jsonl:1: not a line of JSON"),
        ("[1]", "a row is an object"),
        ('{"golds": "1", "pred": "2", "equal": true}', "no text 'gold'. Did you mean 'golds'"),
        ('{"gold": "1", "pred": "2"}', "no label"),
        ("", "no rows to audit"),
    ]:
        file.write_text(content)
        with pytest.raises(UsageError, match=message.replace("[", "\\[")):
            audit([file])
    with pytest.raises(UsageError, match="cannot read"):
        audit([tmp_path / "none.jsonl"])
