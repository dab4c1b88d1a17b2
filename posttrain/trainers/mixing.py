"""In which order rows of several sources are trained on, so that each has its share throughout.

The n-th example comes from the source that is furthest behind its share; ties go to the one named
first. So every beginning of the order holds the shares, to one example. Within a source the order
is a permutation, anew for each pass over it. All of it follows from (seed, sizes, shares) alone:
to resume, a number of steps is enough.

A pass over a mix is a pass over the source with the largest share; the others are drawn to theirs,
from the start again when they run out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from posttrain.errors import UsageError


def pass_size(sizes: Mapping[str, int], shares: Mapping[str, float]) -> int:
    """Examples in one pass."""
    fractions = _fractions(sizes, shares)
    largest = max(fractions, key=lambda name: fractions[name])
    return math.ceil(sizes[largest] / fractions[largest])


def mixed(
    sizes: Mapping[str, int], shares: Mapping[str, float], total: int, seed: int
) -> list[tuple[str, int]]:
    """(source, row) of ``total`` examples. Raises UsageError for a source without rows."""
    fractions = _fractions(sizes, shares)
    taken = dict.fromkeys(fractions, 0)
    orders: dict[str, list[int]] = {}
    chosen = []
    for n in range(1, total + 1):
        name = max(taken, key=lambda name: fractions[name] * n - taken[name])
        number, row = divmod(taken[name], sizes[name])
        if row == 0:
            orders[name] = list(range(sizes[name]))
            random.Random(f"{seed}:{name}:{number}").shuffle(orders[name])
        chosen.append((name, orders[name][row]))
        taken[name] += 1
    return chosen


def _fractions(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    empty = [name for name in shares if not sizes[name]]
    if empty:
        raise UsageError(f"mix: no example is left of {', '.join(empty)}")
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}
