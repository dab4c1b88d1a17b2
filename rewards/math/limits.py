"""Decides how large an answer may be before it is refused unread, so that no text is expensive.

Every bound is far above what an answer to a mathematical question needs. A prediction beyond one
is UNPARSEABLE, with the bound in the detail: whoever wrote it could have written it shorter. A
gold answer beyond one is an error of the data.
"""

from __future__ import annotations

MAX_CHARS = 4000  # of one answer; longer ones are not tokenised
MAX_TOKENS = 1500
MAX_DEPTH = 30  # brackets, roots, fractions and powers inside one another
MAX_DIGITS = 400  # of one number
MAX_BITS = 1 << 15  # of an exact integer
MAX_FACTORIAL = 1000
MAX_TERMS = 400  # of a sum or product that is written out
MAX_VALUES = 50_000  # computed for one question, exactly; large ones count more than once
MAX_APPROXIMATED = 6_000  # values of 80 digits at one point
MAX_COMPARED = 10_000  # pairs of parts of one question
MAX_ITEMS = 64  # of a list, tuple or set
MAX_MATRIX = 12  # rows, columns
MAX_CELL = 2000  # parts of an entry of a matrix, after arithmetic
MAX_MAGNITUDE_BITS = 1 << 22  # of a number that is only approximated: 2 ** (2 ** 22)
TAIL_CHARS = 20_000  # how much of a response's end is searched for its answer


class Unreadable(ValueError):
    """Text that is no answer in the grammar of ``rewards.math.grammar``."""


class TooLarge(Unreadable):
    """An answer beyond one of the bounds above; the message says which."""


class Undefined(ArithmeticError):
    """A value that does not exist: a division by zero, infinity minus infinity."""


def names(spaced: str) -> frozenset[str]:
    """The words of a text, as tables of names are written."""
    return frozenset(spaced.split())
