"""Python values as JSON that keeps their types, so that they can cross a process without pickle.

None, booleans, strings, lists and integers below 2**53 stand for themselves; everything else is an
object with one key, its type. What has no form is ``{"opaque": type name}``: it can be told from
everything else, and equals nothing. A subclass takes the form of its base, by the base's own
methods, so that an overridden ``__eq__``, ``__iter__`` or ``__str__`` stays behind.

This file also runs inside the sandbox, on whatever Python is there: standard library only,
nothing newer than Python 3.10, and few imports, since each run pays for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing, decimal and fractions takes as long as Python's own start
    from collections.abc import Callable
    from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000  # taken from an iterator
_SMALL = 1 << 53


class Opaque:
    """What a value without a form becomes. Equal to nothing, itself included."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.name}>"


def encode(value: Any, depth: int = 0) -> Any:
    """The JSON form. Never raises for what a value is; it may for what its methods do."""
    if depth > MAX_DEPTH:
        return {"opaque": "nested too deeply"}
    if value is None or value is True or value is False:
        return value
    for kind, form in _FORMS:
        if isinstance(value, kind):
            return form(value, depth + 1)
    name = (type(value).__module__, type(value).__name__)
    if name == ("decimal", "Decimal"):
        return {"decimal": str(value)}
    if name == ("fractions", "Fraction"):
        return {"fraction": [encode(value.numerator), encode(value.denominator)]}
    if name[0] == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), depth + 1)  # what is numpy's own, such as int64
    return {"opaque": type(value).__name__}


def _integer(value: int, depth: int) -> Any:
    number = int.__int__(value)
    return number if -_SMALL < number < _SMALL else {"int": int.__format__(number, "x")}


def _items(name: str, iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any, int], Any]:
    return lambda value, depth: {name: [encode(item, depth) for item in iterate(value)]}


def _iterator(value: Iterator[Any], depth: int) -> Any:
    taken = list(itertools.islice(value, MAX_ITEMS + 1))
    if len(taken) > MAX_ITEMS:
        return {"opaque": "an iterator without end"}
    return {"iterator": [encode(item, depth) for item in taken]}


_FORMS: list[tuple[Any, Callable[[Any, int], Any]]] = [
    (int, _integer),
    (float, lambda value, depth: {"float": float.hex(value)}),
    (str, lambda value, depth: str.__str__(value)),
    (list, lambda value, depth: [encode(item, depth) for item in list.__iter__(value)]),
    (tuple, _items("tuple", tuple.__iter__)),
    (
        dict,
        lambda value, depth: {
            "dict": [[encode(k, depth), encode(v, depth)] for k, v in dict.items(value)]
        },
    ),
    (set, _items("set", set.__iter__)),
    (frozenset, _items("frozenset", frozenset.__iter__)),
    (bytes, lambda value, depth: {"bytes": bytes.hex(value)}),
    (bytearray, lambda value, depth: {"bytearray": bytearray.hex(value)}),
    (
        complex,
        lambda value, depth: {
            "complex": [float.hex(value.real), float.hex(value.imag)],
        },
    ),
    (range, lambda value, depth: {"range": [encode(one) for one in _bounds(value)]}),
    (Iterator, _iterator),
]


def _bounds(value: range) -> tuple[int, int, int]:
    return value.start, value.stop, value.step


def decode(form: Any, depth: int = 0) -> Any:
    """The value of a form, of exactly the type that it names.

    Raises ValueError for what is no form. What is hashable stays so: a dictionary with a list as
    its key is no form.
    """
    if depth > 2 * MAX_DEPTH:
        raise ValueError("nested too deeply")
    if form is None or isinstance(form, (bool, int, str)):
        return form
    if isinstance(form, list):
        return [decode(item, depth + 1) for item in form]
    if not isinstance(form, dict) or len(form) != 1:
        raise ValueError("not the form of a value")
    (name, content), *_ = form.items()
    try:
        return _READERS[name](content, depth + 1)
    except (KeyError, TypeError, AttributeError, ArithmeticError, IndexError) as error:
        raise ValueError(f"not the form of a value: {name!r:.50}") from error


def _decimal(content: str, depth: int) -> Any:
    from decimal import Decimal

    return Decimal(content)


def _fraction(content: list[Any], depth: int) -> Any:
    from fractions import Fraction

    return Fraction(*map(decode, content))


def shallow(form: object) -> bool:
    """Whether JSON is no deeper than the form of a value can be: what is not breaks who writes it
    again."""
    level = [form]
    for _ in range(4 * MAX_DEPTH):  # a dictionary takes three levels of JSON for one of its own
        if not level:
            return True
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner
    return False


def _decode_all(content: list[Any], depth: int) -> list[Any]:
    return [decode(item, depth) for item in content]


_READERS: dict[str, Callable[[Any, int], Any]] = {
    "int": lambda content, depth: int(content, 16),
    "float": lambda content, depth: float.fromhex(content),
    "tuple": lambda content, depth: tuple(_decode_all(content, depth)),
    "dict": lambda content, depth: {decode(k, depth): decode(v, depth) for k, v in content},
    "set": lambda content, depth: set(_decode_all(content, depth)),
    "frozenset": lambda content, depth: frozenset(_decode_all(content, depth)),
    "bytes": lambda content, depth: bytes.fromhex(content),
    "bytearray": lambda content, depth: bytearray.fromhex(content),
    "complex": lambda content, depth: complex(*map(float.fromhex, content)),
    "range": lambda content, depth: range(*map(decode, content)),
    "decimal": _decimal,
    "fraction": _fraction,
    "iterator": lambda content, depth: iter(_decode_all(content, depth)),
    "opaque": lambda content, depth: Opaque(str(content)),
}
