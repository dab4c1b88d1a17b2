"""Decides the value of an expression exactly: bounded rational arithmetic, no approximation.

An expression of rational numbers has a value, or is too large to be given one here. A rational
function of variables is decided at three points drawn at random when the process starts: two
different ones of degree d agree at a random 40-bit point with probability d / 2**40, and nobody
can write one that vanishes at points they do not know.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from fractions import Fraction
from random import SystemRandom
from typing import Any

from rewards.math.limits import (
    MAX_BITS,
    MAX_FACTORIAL,
    MAX_TERMS,
    MAX_VALUES,
    TooLarge,
    Undefined,
)

Node = tuple[Any, ...]
Point = Mapping[Node, Fraction]

_RANDOM = SystemRandom()
N_POINTS = 3
_POINTS: list[dict[Node, Fraction]] = [{} for _ in range(N_POINTS)]
_KEPT_VARIABLES = 4096


class _Work(threading.local):
    """What the question that this thread is at has cost so far."""

    left = math.inf


_WORK = _Work()


def start_counting() -> None:
    """A new question: from here on this thread may compute MAX_VALUES values."""
    _WORK.left = MAX_VALUES


class Irrational(ArithmeticError):
    """The value is not rational, or the kind of node is not arithmetic: no verdict here."""


def value(node: Node, point: Point | None = None) -> Fraction:
    """The exact value, with variables as in ``point``.

    Raises Irrational, Undefined (it has no value) or TooLarge (beyond MAX_BITS).
    """
    kind = node[0]
    if kind == "num":
        return _bounded(node[1])
    if kind == "sym":
        if point is None or node not in point:
            raise Irrational(kind)
        return point[node]
    handler = _HANDLERS.get(kind)
    if handler is None:
        raise Irrational(kind)
    return _bounded(handler(node, point))


def variables(node: Any) -> set[Node]:
    """The variables in a node, at any depth."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if not isinstance(one, tuple) or not one:
            continue
        if one[0] == "sym":
            found.add(one)
        else:
            stack.extend(one)
    return found


def points(names: set[Node]) -> list[dict[Node, Fraction]]:
    """Values for the variables, the same ones for as long as the process lives."""
    for i, point in enumerate(_POINTS):
        if len(point) > _KEPT_VARIABLES:
            point.clear()
        for name in names - point.keys():
            size = _RANDOM.getrandbits(40) + (1 << 40)
            point[name] = Fraction(-size if i == 1 else size)  # sqrt(x^2) is not x
    return _POINTS


def equal(a: Node, b: Node) -> bool | None:
    """Whether two expressions are equal; None when exact arithmetic cannot tell."""
    names = variables(a) | variables(b)
    if not names:
        try:
            return value(a) == value(b)
        except Irrational:
            return None
    seen = 0
    for point in points(names):
        try:
            if value(a, point) != value(b, point):
                return False
            seen += 1
        except Undefined:
            continue
        except (Irrational, TooLarge):
            return None
    return True if seen >= 2 else None


def proportional(a: Node, b: Node) -> Fraction | None:
    """The rational c with ``a = c * b``, 0 when there is none; None when it cannot be told."""
    names = variables(a) | variables(b)
    ratios = set()
    for point in points(names):
        try:
            above, below = value(a, point), value(b, point)
        except Undefined:
            continue
        except (Irrational, TooLarge):
            return None
        if not below or not above:
            return Fraction(0)
        ratios.add(above / below)
    return ratios.pop() if len(ratios) == 1 else Fraction(0)


def _bounded(number: Fraction) -> Fraction:
    if number.numerator.bit_length() > MAX_BITS or number.denominator.bit_length() > MAX_BITS:
        raise TooLarge(f"an exact number of more than {MAX_BITS} bits")
    kilobits = max(number.numerator.bit_length(), number.denominator.bit_length()) >> 10
    _WORK.left -= 1 + kilobits**2  # as the cost of reducing a fraction grows
    if _WORK.left < 0:
        raise TooLarge(f"more than {MAX_VALUES} values to compute")
    return number


def _add(node: Node, point: Point | None) -> Fraction:
    total = Fraction(0)
    for term in node[1:]:
        total = _bounded(total + value(term, point))
    return total


def _mul(node: Node, point: Point | None) -> Fraction:
    product = Fraction(1)
    for factor in node[1:]:
        product = _bounded(product * value(factor, point))
    return product


def _div(node: Node, point: Point | None) -> Fraction:
    above, below = value(node[1], point), value(node[2], point)
    if not below:
        raise Undefined("a division by zero")
    return above / below


def _pow(node: Node, point: Point | None) -> Fraction:
    base, exponent = value(node[1], point), value(node[2], point)
    if exponent.denominator != 1:
        return _root(base, exponent)
    if not base and exponent <= 0:
        raise Undefined("a power of zero")
    return _integer_power(base, exponent.numerator)


def _integer_power(base: Fraction, exponent: int) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base and bits * abs(exponent) > MAX_BITS:
        raise TooLarge(f"a power of more than {MAX_BITS} bits")
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    return base**exponent


def _root(base: Fraction, exponent: Fraction) -> Fraction:
    """A rational root of a positive rational, if it is one (8 ** (2/3) = 4)."""
    n = exponent.denominator
    if base < 0 or n > 64:
        raise Irrational("root")
    above, below = _integer_root(base.numerator, n), _integer_root(base.denominator, n)
    if above**n != base.numerator or below**n != base.denominator:
        raise Irrational("root")
    if not above and exponent < 0:
        raise Undefined("a division by zero")
    return _integer_power(Fraction(above, below), exponent.numerator)


def _integer_root(number: int, n: int) -> int:
    if n == 2:
        return math.isqrt(number)
    low, high = 0, 1 << (number.bit_length() // n + 1)
    while low < high:
        middle = (low + high + 1) >> 1
        if middle**n <= number:
            low = middle
        else:
            high = middle - 1
    return low


def _fact(node: Node, point: Point | None) -> Fraction:
    number = value(node[1], point)
    if number.denominator != 1 or number < 0 or point is not None:
        raise Irrational("factorial")
    if number > MAX_FACTORIAL:
        raise TooLarge(f"a factorial beyond {MAX_FACTORIAL}")
    return Fraction(math.factorial(number.numerator))


def _integers(node: Node, point: Point | None) -> list[int]:
    values = [value(argument, point) for argument in node[2]]
    if any(number.denominator != 1 for number in values):
        raise Irrational("integers")
    return [number.numerator for number in values]


def _fn(node: Node, point: Point | None) -> Fraction:
    name = node[1]
    if variables(node) and name != "det":
        raise Irrational(name)
    if name == "abs":
        return abs(value(node[2][0], point))
    if name == "binom":
        above, below = _integers(node, point)
        if not below >= 0 or not 0 <= above <= MAX_FACTORIAL:
            raise TooLarge(f"a binomial beyond {MAX_FACTORIAL}")
        return Fraction(math.comb(above, below))
    if name in ("gcd", "lcm"):
        return Fraction(getattr(math, name)(*_integers(node, point)))
    if name in ("max", "min"):
        chosen = max if name == "max" else min
        return chosen(value(argument, point) for argument in node[2])
    if name in ("floor", "ceil"):
        return Fraction(getattr(math, name)(value(node[2][0], point)))
    if name == "det" and node[2][0][0] == "matrix":
        return _determinant([[value(x, point) for x in row] for row in node[2][0][1]])
    if name == "log" and len(node[2]) == 2:
        return _logarithm(*(value(argument, point) for argument in node[2]))
    raise Irrational(name)


def _logarithm(number: Fraction, base: Fraction) -> Fraction:
    """An integer logarithm of an integer."""
    if number <= 0 or base <= 1 or number.denominator != 1 or base.denominator != 1:
        raise Irrational("log")
    power, n = 1, 0
    while power < number:
        power, n = power * base.numerator, n + 1
    if power != number:
        raise Irrational("log")
    return Fraction(n)


def _determinant(rows: list[list[Fraction]]) -> Fraction:
    if any(len(row) != len(rows) for row in rows):
        raise Irrational("a determinant of a matrix that is not square")
    result, size = Fraction(1), len(rows)
    for i in range(size):
        pivot = next((r for r in range(i, size) if rows[r][i]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != i:
            rows[i], rows[pivot], result = rows[pivot], rows[i], -result
        result *= rows[i][i]
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [_bounded(x - factor * y) for x, y in zip(rows[r], rows[i], strict=True)]
    return result


def series_range(node: Node, point: Point | None = None) -> range:
    """The values of the running variable of a sum or product. Raises TooLarge, Irrational."""
    start, end = value(node[3], point), value(node[4], point)
    if start.denominator != 1 or end.denominator != 1:
        raise Irrational("a series between fractions")
    if end - start > MAX_TERMS:
        raise TooLarge(f"a sum or product of more than {MAX_TERMS} terms")
    return range(start.numerator, end.numerator + 1)


def _series(node: Node, point: Point | None) -> Fraction:
    result = Fraction(0 if node[0] == "sum" else 1)
    for i in series_range(node, point):
        term = value(node[1], {**(point or {}), node[2]: Fraction(i)})
        result = _bounded(result + term if node[0] == "sum" else result * term)
    return result


_HANDLERS = {
    "add": _add,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "neg": lambda node, point: -value(node[1], point),
    "pct": lambda node, point: value(node[1], point) / 100,
    "fact": _fact,
    "fn": _fn,
    "sum": _series,
    "prod": _series,
}
