"""Decides whether what a program printed, or what a call returned, is what was expected.

Printed text: line ends and white space at the end of lines and of the text do not count. Then
line by line, word by word: words must be equal, or both be decimal numbers, at least one of them
written with a point or an exponent, that differ by at most ``tolerance`` (relative, or absolute
below 1). Case counts; ``7`` is not ``007``.

Returned values: the type counts where Python's ``==`` would hide it: True is not 1, "1" is not 1.
Integers and floats are compared by value, floats within ``tolerance``; NaN is NaN. An expected list
may come back as a tuple (data sets in JSON have no tuples), unless ``strict``; an expected tuple
must come back as a tuple. Keys of a dictionary and members of a set are compared exactly.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any, NamedTuple

from rewards.code.values import encode

MAX_NUMBER = 60  # characters
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


def same_text(got: str, expected: str, tolerance: float) -> bool:
    got_lines, expected_lines = _lines(got), _lines(expected)
    if got_lines == expected_lines:
        return True
    return len(got_lines) == len(expected_lines) and all(
        _same_line(one, other, tolerance)
        for one, other in zip(got_lines, expected_lines, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _same_line(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    words, others = got.split(), expected.split()
    return len(words) == len(others) and all(
        one == other or _same_number(one, other, tolerance)
        for one, other in zip(words, others, strict=True)
    )


def _same_number(got: str, expected: str, tolerance: float) -> bool:
    if max(len(got), len(expected)) > MAX_NUMBER:
        return False
    if not _DECIMAL.fullmatch(got) or not _DECIMAL.fullmatch(expected):
        return False
    if not any(mark in got + expected for mark in ".eE"):
        return False
    return _close(float(got), float(expected), tolerance)


def _close(got: float, expected: float, tolerance: float) -> bool:
    if math.isnan(got) or math.isnan(expected):
        return math.isnan(got) and math.isnan(expected)
    return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)


def same_value(got: Any, expected: Any, tolerance: float, *, strict: bool = False) -> bool:
    """``got`` is a form of ``rewards.code.values``, as JSON gave it; ``expected`` is a value.

    ``got`` may be any JSON, forged to hurt: it is never turned into a value, so that no hash can
    collide, no fraction be reduced and no huge number be printed. Never raises for what it is.
    """
    try:
        return _same_form(got, encode(expected), _Policy(tolerance, strict))
    except (ValueError, TypeError, ArithmeticError):  # what is no form is nothing's equal
        return False


class _Policy(NamedTuple):
    tolerance: float
    strict: bool


def _same_form(got: Any, expected: Any, policy: _Policy) -> bool:
    kind, content = _open(expected)
    got_kind, got_content = _open(got)
    if kind in ("int", "float") and got_kind in ("int", "float"):
        return _same_numbers(_number(got), _number(expected), policy.tolerance)
    if kind == "list" and got_kind == "tuple" and not policy.strict:
        got_kind = "list"
    if {kind, got_kind} == {"set", "frozenset"}:
        got_kind = kind
    if kind != got_kind or kind in ("opaque", "iterator"):
        return False
    match kind:
        case "list" | "tuple":
            return len(got_content) == len(content) and all(
                _same_form(one, other, policy)
                for one, other in zip(got_content, content, strict=True)
            )
        case "dict":
            values = {_text(key): value for key, value in got_content}
            wanted = {_text(key): value for key, value in content}
            return values.keys() == wanted.keys() and all(
                _same_form(values[key], value, policy) for key, value in wanted.items()
            )
        case "set" | "frozenset":
            return {_text(one) for one in got_content} == {_text(one) for one in content}
        case "complex":
            parts = zip(got_content, content, strict=True)
            return all(
                _close(float.fromhex(one), float.fromhex(other), policy.tolerance)
                for one, other in parts
            )
        case "decimal":
            numbers = (Decimal(got_content), Decimal(content))
            return not any(one.is_snan() for one in numbers) and numbers[0] == numbers[1]
    return bool(got_content == content)


def _open(form: Any) -> tuple[str, Any]:
    """The type that a form names, and its content."""
    if isinstance(form, dict) and len(form) == 1:
        ((kind, content),) = form.items()
        return kind, content
    if isinstance(form, bool) or form is None:
        return "constant", form
    return type(form).__name__, form


def _number(form: Any) -> float:
    kind, content = _open(form)
    if kind == "float":
        return float.fromhex(content)
    return int(content, 16) if isinstance(content, str) else int(content)


def _same_numbers(got: float, expected: float, tolerance: float) -> bool:
    if isinstance(got, int) and isinstance(expected, int):
        return got == expected
    return _close(float(got), float(expected), tolerance)


def _text(form: Any) -> str:
    """A key that tells 1 from True and from 1.0. Text is hashed with a secret, numbers are not."""
    return json.dumps(form, sort_keys=True)
