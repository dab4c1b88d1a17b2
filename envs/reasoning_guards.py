"""What an answer must be before a reasoning-gym scorer may see it.

Two reasons to refuse one, which makes it WRONG:

- Nine scorers hand the answer to ``eval`` or to sympy's ``parse_expr``, which evaluates, too. For
  those only a plain literal or expression passes: no call but of known functions, no attribute, no
  power large enough to keep sympy busy. (``Integral`` is not known: an integration task would be
  solved by its own question.)
- Five scorers give full marks for wrong answers, found by trying: game_of_life_halting for any text
  at all, coin_flip for a prefix of the right number ("0"), complex_arithmetic for "nan",
  gsm_symbolic for text whose first number is right, puzzle24 for 24 made of other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_CHARS = 200_000

_LITERAL = re.compile(r"[A-Za-z0-9_\s\[\],'\"-]*")
_ARITHMETIC = re.compile(r"[0-9+\-*/(). ]*")
_ALGEBRA = re.compile(r"[A-Za-z0-9+\-*/(). ]*")
_WORD = re.compile(r"[A-Za-z]+[0-9]*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_FUNCTIONS = frozenset(
    "exp log sqrt pi sin cos tan cot sec csc asin acos atan sinh cosh tanh".split()  # noqa: SIM905
)
# A huge number or exponent, a tower of powers, and "x.y", which would be an attribute.
_RISKY = re.compile(
    r"\d{25}|\*\*\s*\(?\s*-?\d{4}|\*\*[^+\-/]*\*\*|[A-Za-z0-9)]\s*\.\s*[A-Za-z]|\([^()]*\)\s*\("
)

Guard = Callable[[str, str, Mapping[str, Any]], bool]  # answer, gold answer, metadata


def refused(dataset: str, answer: str, gold: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether ``answer`` is wrong without the scorer of ``dataset`` being asked."""
    if len(answer) > MAX_CHARS:
        return True
    guard = _GUARDS.get(dataset)
    return guard is not None and not guard(answer, str(gold), metadata)


def _literal(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    return len(answer) <= 5000 and _LITERAL.fullmatch(answer) is not None


def _arithmetic(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    plain = _ARITHMETIC.fullmatch(answer) is not None and "**" not in answer
    return plain and len(answer) <= 300 and not _RISKY.search(answer)


def _algebra(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    if len(answer) > 2000 or not _ALGEBRA.fullmatch(answer) or _RISKY.search(answer):
        return False
    return all(len(name) == 1 or name in _FUNCTIONS for name in _WORD.findall(answer))


def _puzzle24(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    used = sorted(float(number) for number in _NUMBER.findall(answer))
    return _arithmetic(answer, gold, metadata) and used == sorted(metadata["numbers"])


def _same_word(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    return answer.strip().rstrip(".").casefold() == gold.casefold()


def _one_number(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    return len(_NUMBER.findall(answer)) == 1


def _close(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    """Within a thousandth of the gold probability; what is no number is the scorer's to judge."""
    if len(answer) > 100 or re.search(r"[eE][+-]?\d{3}", answer):
        return False
    try:
        said, right = Fraction(answer.replace(",", "")), Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return True
    return abs(said - right) <= abs(right) / 1000


def _finite(answer: str, gold: str, metadata: Mapping[str, Any]) -> bool:
    return re.search(r"nan|inf", answer, re.IGNORECASE) is None


_GUARDS: dict[str, Guard] = {
    "binary_matrix": _literal,
    "coin_flip": _close,
    "complex_arithmetic": _finite,
    "countdown": _arithmetic,
    "game_of_life_halting": _same_word,
    "gsm_symbolic": _one_number,
    "intermediate_integration": _algebra,
    "n_queens": _literal,
    "polynomial_multiplication": _algebra,
    "puzzle24": _puzzle24,
    "simple_integration": _algebra,
    "spiral_matrix": _literal,
    "string_insertion": _literal,
}
