"""Decides whether two irrational expressions are equal by their values to 60 digits.

Runs in a worker only: mpmath on hostile input may take long. Variables take seven fixed values of
either sign, small enough for exponentials; complex intermediate values are the principal ones. Two
expressions are equal when they agree at every point where both have a value, four points at least,
relative to the largest term that was added on the way (so that ``0`` can be recognised). One clear
difference is proof of the contrary.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewards.math.exact import Irrational, series_range, variables
from rewards.math.limits import MAX_APPROXIMATED, MAX_MAGNITUDE_BITS, TooLarge, Undefined

Node = tuple[Any, ...]

DIGITS = 80
AGREE = 55  # digits, of the 80 that are computed with
N_POINTS = 7
MIN_POINTS = 4


class Unknown(ArithmeticError):
    """A kind of node without a numeric value."""


def equal(a: Node, b: Node) -> bool | None:
    """Whether ``a`` and ``b`` have the same values; None when too few could be computed."""
    import mpmath

    names = sorted(variables(a) | variables(b))
    seen = 0
    with mpmath.workdps(DIGITS):
        for i in range(N_POINTS if names else 1):
            point = {name: _sample(mpmath, i, j) for j, name in enumerate(names)}
            try:
                left, right = Evaluator(mpmath, point), Evaluator(mpmath, point)
                mine, theirs = left.value(a), right.value(b)
            except (Unknown, Irrational):
                return None
            except (ArithmeticError, ValueError):
                continue
            scale = max(left.largest, right.largest, abs(mine), abs(theirs))
            if not mpmath.isfinite(scale):
                continue
            if abs(mine - theirs) > scale * mpmath.mpf(10) ** -AGREE:
                return False
            seen += 1
    return True if seen >= (MIN_POINTS if names else 1) else None


def multiple(a: Node, b: Node, sign: int) -> bool | None:
    """Whether ``a`` is a constant multiple of ``b``, by a factor of that sign."""
    import mpmath

    names = sorted(variables(a) | variables(b))
    ratios = []
    with mpmath.workdps(DIGITS):
        for i in range(N_POINTS):
            point = {name: _sample(mpmath, i, j) for j, name in enumerate(names)}
            try:
                above = Evaluator(mpmath, dict(point)).value(a)
                ratios.append(above / Evaluator(mpmath, dict(point)).value(b))
            except (Unknown, Irrational):
                return None
            except (ArithmeticError, ValueError):
                continue
        if len(ratios) < MIN_POINTS:
            return None
        first, nearly = ratios[0], mpmath.mpf(10) ** -AGREE
        if mpmath.im(first) or mpmath.re(first) * sign <= 0:
            return False
        return all(abs(ratio - first) <= abs(first) * nearly for ratio in ratios)


def rounds_to(exact: Node, decimal: Fraction, unit: Fraction) -> bool | None:
    """Whether ``decimal`` is the value of ``exact`` rounded to a multiple of ``unit``."""
    import mpmath

    with mpmath.workdps(DIGITS):
        try:
            number = Evaluator(mpmath, {}).value(exact)
        except (ArithmeticError, ValueError):
            return None
        if abs(mpmath.im(number)) > mpmath.mpf(10) ** -AGREE:
            return False
        gap = abs(mpmath.re(number) - _mpf(mpmath, decimal))
        return bool(gap <= _mpf(mpmath, unit) / 2)


def _sample(mpmath: Any, i: int, j: int) -> Any:
    """The i-th value of the j-th variable: irrational, between 0.3 and 3, negative at times."""
    size = mpmath.sqrt(2 + 3 * i + 7 * j) * mpmath.mpf("0.37") / (1 + mpmath.mpf(j) / 13) + 0.15
    return -size if (i + j) % 3 == 2 else size


def _mpf(mpmath: Any, number: Fraction) -> Any:
    return mpmath.mpf(number.numerator) / number.denominator


class Evaluator:
    """Values of nodes at one point; remembers the largest term it added."""

    def __init__(self, mpmath: Any, point: dict[Node, Any]) -> None:
        self.mp = mpmath
        self.point = point
        self.largest = mpmath.mpf(0)
        self.left = MAX_APPROXIMATED

    def value(self, node: Node) -> Any:
        self.left -= 1
        if self.left < 0:
            raise TooLarge(f"more than {MAX_APPROXIMATED} values to compute")
        kind = node[0]
        if kind == "sym" and node in self.point:
            return self.point[node]
        method = getattr(self, f"_{kind}", None)
        if method is None:
            raise Unknown(kind)
        return self._checked(method(node))

    def _checked(self, number: Any) -> Any:
        if self.mp.isnan(number) or self.mp.isinf(number):
            raise Undefined("not a finite number")
        if number and abs(self.mp.mag(number)) > MAX_MAGNITUDE_BITS:
            raise TooLarge("a number beyond 2 ** (2 ** 22)")
        return number

    def _num(self, node: Node) -> Any:
        return _mpf(self.mp, node[1])

    def _const(self, node: Node) -> Any:
        constants = {"pi": self.mp.pi, "e": self.mp.e, "i": self.mp.mpc(0, 1)}
        if node[1] not in constants:
            raise Undefined(node[1])
        return +constants[node[1]]

    def _add(self, node: Node) -> Any:
        total = self.mp.mpf(0)
        for term in node[1:]:
            number = self.value(term)
            self.largest = max(self.largest, abs(number))
            total += number
        return total

    def _mul(self, node: Node) -> Any:
        product = self.mp.mpf(1)
        for factor in node[1:]:
            product = self._checked(product * self.value(factor))
        return product

    def _div(self, node: Node) -> Any:
        below = self.value(node[2])
        if abs(below) < self.mp.mpf(10) ** -AGREE * max(1, self.largest):
            raise Undefined("a division by zero")
        return self.value(node[1]) / below

    def _neg(self, node: Node) -> Any:
        return -self.value(node[1])

    def _pct(self, node: Node) -> Any:
        return self.value(node[1]) / 100

    def _degree(self, node: Node) -> Any:
        return self.value(node[1]) * self.mp.pi / 180

    def _pow(self, node: Node) -> Any:
        base, exponent = self.value(node[1]), self.value(node[2])
        if not base:
            if self.mp.re(exponent) <= 0:
                raise Undefined("a power of zero")
            return self.mp.mpf(0)
        bits = abs(exponent) * (1 + abs(self.mp.log(abs(base), 2)))
        if bits > MAX_MAGNITUDE_BITS:
            raise TooLarge("a power beyond 2 ** (2 ** 22)")
        return self.mp.power(base, exponent)

    def _fact(self, node: Node) -> Any:
        number = self.value(node[1])
        if abs(number) > 10_000:
            raise TooLarge("a factorial beyond 10000")
        return self.mp.factorial(number)

    def _sum(self, node: Node) -> Any:
        outer = self.point.get(node[2])
        result = self.mp.mpf(0 if node[0] == "sum" else 1)
        for i in series_range(node):
            self.point[node[2]] = self.mp.mpf(i)
            term = self.value(node[1])
            result = result + term if node[0] == "sum" else self._checked(result * term)
        if outer is not None:
            self.point[node[2]] = outer
        return result

    _prod = _sum

    def _fn(self, node: Node) -> Any:
        name = node[1]
        if name == "det":
            rows = node[2][0][1]
            return self.mp.det(self.mp.matrix([[self.value(x) for x in row] for row in rows]))
        arguments = [self.value(argument) for argument in node[2]]
        if name in ("floor", "ceil", "max", "min", "gcd", "lcm", "dim", "deg", "sgn"):
            return self._integer_like(name, arguments)
        mp, x = self.mp, arguments[0]
        if name == "exp":
            if abs(x) > MAX_MAGNITUDE_BITS / 2:
                raise TooLarge("an exponential beyond 2 ** (2 ** 22)")
            return mp.exp(x)
        if name in ("ln", "log"):
            if not x or (len(arguments) == 2 and arguments[1] in (0, 1)):
                raise Undefined("a logarithm of zero")
            return mp.log(x) if len(arguments) == 1 else mp.log(x) / mp.log(arguments[1])
        if name == "abs":
            return abs(x)
        if name == "binom":
            if max(map(abs, arguments)) > 10_000:
                raise TooLarge("a binomial beyond 10000")
            return mp.binomial(*arguments)
        known = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
                 "arcsec": "asec", "arccsc": "acsc", "Re": "re", "Im": "im"}  # fmt: skip
        trigonometric = ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "sech",
                         "csch", "coth", "arg")  # fmt: skip
        if name in known or name in trigonometric:
            return getattr(mp, str(known.get(name, name)))(x)
        raise Unknown(name)

    def _integer_like(self, name: str, arguments: list[Any]) -> Any:
        if any(abs(self.mp.im(x)) > 0 for x in arguments):
            raise Unknown(name)
        if name in ("max", "min"):
            return (max if name == "max" else min)(arguments)
        if name in ("floor", "ceil"):
            return getattr(self.mp, name)(arguments[0])
        raise Unknown(name)
