"""Decides when two answers are the same text, and what is read from a text before it is parsed."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from rewards.math.characters import plain
from rewards.math.limits import MAX_CHARS
from rewards.math.units import UNITS

_VOID = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|quad|qquad)(?![a-zA-Z])"
    r"|\\[,;:! ]|[~\s]+|\\[()\[\]]|(?<!\\)\$"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_DOTS = re.compile(r"\\(?:dots|cdots|dotsc)(?![a-zA-Z])|\.\.\.")
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|boxed|bf|rm)\{([^{}\\]*)\}"
)
_CHOICE = re.compile(r"(?:[Oo]ption|[Cc]hoice)?\(?([A-Ja-j])\)?[.:]?")
_LONG_CHOICE = re.compile(
    r"(?:\(([A-J])\)|([A-J])[).:])\s*(?!\s*[,/]|\s*(?:or|and)\b)(.{1,200})", re.DOTALL
)
_ANOTHER_CHOICE = re.compile(r"\([A-J]\)|(?<![A-Za-z\\])[A-J][).:]|\bor\b|\b[A-J]\b\s*,")
_DECIMAL_COMMA = re.compile(r"([-+]?(?:0|\d{4,})),(\d+)")
_TRAILING_UNIT = re.compile(
    r"(.*[\d})!π])\s*([A-Za-zµ]{1,3})(?:/([A-Za-z]{1,3}))?\s*(?:\^\{?\s*[23]\s*\}?)?", re.DOTALL
)
_NUMBER = re.compile(
    r"(?:\\?\$)?([-+]?)(?:\\?\$)?((?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,15})(?:\.\d{1,6})?)"
)
_UNIT_WORD = r"\{\s*\\(?:text|mathrm|textrm)\{\s*([A-Za-z]{1,20})\s*\}\s*\}"
_UNIT_FRACTION = re.compile(rf"\\[dtc]?frac\s*{_UNIT_WORD}\s*{_UNIT_WORD}")
_INTERVAL = r"(?:\\left\s*)?([\[\]])([^\[\]]{1,200}?[,;][^\[\]]{1,200}?)(?:\\right\s*)?([\[\]])"
_ONE_INTERVAL = re.compile(_INTERVAL)
_INTERVALS = re.compile(
    rf"\s*(?:[a-zA-Z]\s*\\in\s*)?{_INTERVAL}(?:\s*(?:\\cup|∪)\s*{_INTERVAL}){{0,50}}[\s.]*"
)
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\s|\d)")  # 4 2 is not 42
_AROUND = " \t\n,;:*"  # and a point behind, but .5 is not 5


@lru_cache(maxsize=8192)
def normalised(text: str) -> str:
    """``text`` without what only changes how it looks; equal texts are equal answers."""
    text = _VOID.sub(" ", plain(text[: 2 * MAX_CHARS]))
    text = _DOTS.sub(lambda _: "\\ldots", _FRACTION.sub(lambda _: "\\frac", text))
    text = _WRAPPED.sub(lambda match: match[1], text)
    return _SPACES.sub("", text).lstrip(_AROUND).rstrip(_AROUND + ".")


def number(text: str) -> Decimal | None:
    """The value of a text that is nothing but a plain number, as most answers are."""
    if len(text) > 24 or (match := _NUMBER.fullmatch(text)) is None:
        return None
    return Decimal(match[1] + match[2].replace(",", ""))


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: A, (A), A., or (A) with the text of the option."""
    bare = normalised(text).strip("{}")
    if match := _CHOICE.fullmatch(bare):
        return match[1] if len(bare) > 1 or bare.isupper() else None
    match = _LONG_CHOICE.fullmatch(_WRAPPED.sub(lambda m: m[1], text.strip()[:300]))
    if match is None or _ANOTHER_CHOICE.search(match[3]):
        return None
    return match[1] or match[2]


def decimal_comma(text: str) -> str:
    """``0,111`` and ``1000,99`` as 0.111 and 1000.99; ``1,5`` stays a list of two."""
    match = _DECIMAL_COMMA.fullmatch(normalised(text))
    return f"{match[1]}.{match[2]}" if match else text


def usual(text: str) -> str:
    """``text`` with two foreign spellings in the usual one: intervals whose open ends are brackets
    turned outwards, ]0,1[ for (0,1), and units as a fraction, which becomes ``\\text{m/s}``."""
    text = _UNIT_FRACTION.sub(lambda match: f"\\text{{ {match[1]}/{match[2]}}}", text)
    if _INTERVALS.fullmatch(text) is None:
        return text
    return _ONE_INTERVAL.sub(
        lambda match: f"{'(['[match[1] == '[']}{match[2]}{'])'[match[3] == '[']}", text
    )


def without_unit(gold: str, pred: str, gold_named: bool, pred_named: bool) -> list[tuple[str, str]]:
    """The pair again, where a side ends in a unit that looks like a variable (5 m).

    Taken off when the other side has no letters, written as text when that is ``named``: has a
    known unit as well.
    """
    pairs = []
    for with_unit, other, named in ((pred, gold, gold_named), (gold, pred, pred_named)):
        match = _TRAILING_UNIT.fullmatch(plain(with_unit).strip())
        if not match or match[2] not in UNITS - {"in"}:
            continue
        if not _LETTERS.search(other):
            told = match[1]
        elif named:
            told = f"{match[1]}\\text{{unit {plain(with_unit).strip()[len(match[1]) :]}}}"
        else:
            continue
        pairs.append((gold, told) if with_unit is pred else (told, pred))
    return pairs
