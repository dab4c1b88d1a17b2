"""Reads JSON that a model wrote, more strictly than ``json.loads`` and with bounds.

Refused: more than ``MAX_CHARS`` characters or ``MAX_DEPTH`` levels, NaN and Infinity, numbers
beyond a double's range, integers of more than 4,300 digits, a key twice in one object, lone
surrogates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_CHARS = 1_000_000
MAX_DEPTH = 100


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError saying what is wrong."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"longer than {MAX_CHARS} characters")
    try:
        value = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError(f"deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    try:
        text.encode()
        if "\\u" in text:  # an escape can spell half a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    return value


def same(left: Any, right: Any) -> bool:
    """JSON equality: true is not 1, 1 is 1.0, the order of keys does not matter.

    Both must be values of ``parse`` or as shallow.
    """
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key is there twice")
    return found


def _check_depth(value: Any) -> None:
    layer, depth = _containers([value]), 0
    while layer:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"deeper than {MAX_DEPTH} levels")
        layer = [one for outer in layer for one in _containers(_inside(outer))]


def _inside(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
