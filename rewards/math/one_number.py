"""Decides whether the final number of a response is GSM8K's. Nothing is evaluated.

The final answer is that of ``rewards.math.answer``; it must hold exactly one number, so that "7
or 8" is no answer. A number has an optional sign, ``$`` in front, thousands separators in threes,
decimals, and may be followed by words, ``%`` or a full stop, which are ignored; fractions and
powers are not read. Values are compared exactly: 72 = 72.0 = $72.00, 1,000 = 1000.

Can it be hacked? A right number after wrong work scores 1: only the number is seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rewards.math.answer import final_answer
from rewards.registry import register
from rewards.score import Outcome, Score

MAX_DIGITS = 40
# A digit run that is not part of a word, a fraction, a power or a malformed 1,00; the lookarounds
# keep "x2" and "3/4" from yielding 2 or 3.
_NUMBER = re.compile(
    r"(?<![\w.,^/])(?P<sign>[-+\u2212]?)\s?\\?\$?\s?(?P<sign2>[-\u2212]?)"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?![\w^/]|[.,]\d)"
)
_DIGIT = re.compile(r"\d")


def _check_row(fields: Mapping[str, Any]) -> None:
    if "answer" in fields:
        gold_number(fields["answer"])


@register("gsm8k", check=_check_row)
def gsm8k(completion: str, answer: object) -> Score:
    """1 when the completion's final number equals the gold one, the text after ``####``.

    UNPARSEABLE, 0, when the completion has no final number; raises ValueError when the gold has
    none, which is an error of the data and not of the model.
    """
    gold = gold_number(answer)
    found = final_number(completion)
    if found is None:
        return Score(0.0, Outcome.UNPARSEABLE)
    if found == gold:
        return Score(1.0, Outcome.CORRECT)
    return Score(0.0, Outcome.WRONG, detail=f"{found} is not {gold}")


def gold_number(answer: object) -> Decimal:
    """The gold number of a row: a number, or text that is one or ends in ``#### <number>``."""
    text = str(answer)
    number = _only_number(text.rpartition("####")[2].strip())
    if number is None:
        raise ValueError(f"the gold answer holds no number: {text[-80:]!r}")
    return number


def final_number(completion: str) -> Decimal | None:
    """The one number in the final answer of a completion, or None."""
    answer = final_answer(completion)
    return None if answer is None else _only_number(answer)


def _only_number(text: str) -> Decimal | None:
    """The one number in ``text``; None when there is none, or any digit outside of it."""
    match = _NUMBER.search(text)
    if match is None or _DIGIT.search(text[: match.start()] + text[match.end() :]):
        return None
    digits = match["digits"].replace(",", "")
    if len(digits) > MAX_DIGITS:
        return None
    negative = (match["sign"] in ("-", "\u2212")) != bool(match["sign2"])
    number = Decimal(digits)
    return -number if negative else number
