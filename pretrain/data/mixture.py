"""Decides how many rows of a phase come from which source, and which place gets which row.

A phase of R rows is cut into blocks. Every whole block takes the same whole number of rows from a
source (largest remainders), in an order of its own; the last, shorter block has numbers of its own.
So the shares hold exactly in each block, and what stands at any place is found from its block
alone. A source's rows come in the order of their numbers.

A source that would be read more often than its cap allows gives the rest of its share to the
others, in proportion to their shares (the idea of UniMax, Chung et al. 2023, arXiv:2304.09151).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pretrain.data.permutation import permuted

_SMALLEST_BLOCK, _LARGEST_BLOCK = 1000, 1_000_000  # rows
_SMALLEST_QUOTA = 10  # rows of the rarest source in a block: its share is exact to a twentieth


def capped(shares: Sequence[float], limits: Sequence[float]) -> list[float] | None:
    """Shares of which none is above its limit; what is cut off goes to the others in proportion.

    ``shares`` sum to 1, ``limits`` are shares too. None when the limits together are below 1.
    """
    result = list(shares)
    fixed: set[int] = set()
    while over := {i for i, share in enumerate(result) if share > limits[i]} - fixed:
        fixed |= over
        left = 1.0 - sum(limits[i] for i in fixed)
        weight = sum(share for i, share in enumerate(shares) if i not in fixed)
        if left > 1e-12 and not weight:
            return None
        result = [
            limits[i] if i in fixed else share * left / weight for i, share in enumerate(shares)
        ]
    return result


def quotas(shares: Sequence[float], rows: int, limited: Sequence[bool]) -> list[int]:
    """Whole numbers that sum to ``rows``; what rounding leaves goes to the largest remainders.

    A limited source is rounded down, so that its cap holds, unless all are.
    """
    exact = [share * rows for share in shares]
    whole = [int(number + 1e-9) for number in exact]
    free = [i for i in range(len(shares)) if shares[i] and not limited[i]]
    free = free or [i for i in range(len(shares)) if shares[i]]
    order = sorted(free, key=lambda i: (whole[i] - exact[i], i))
    for n in range(rows - sum(whole)):
        whole[order[n % len(order)]] += 1
    return whole


def block_rows(shares: Sequence[float], rows: int) -> int:
    """A power of ten, so that decimal shares are exact, in which the rarest source has its part."""
    rarest = min(share for share in shares if share > 0)
    size = _SMALLEST_BLOCK
    while rarest * size < _SMALLEST_QUOTA and size < _LARGEST_BLOCK:
        size *= 10
    return min(size, rows)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The rows of one phase: which source each is from, and how many of it came before."""

    rows: int
    block: int  # rows
    whole: NDArray[np.int64]  # [S] rows of each source in a whole block
    last: NDArray[np.int64]  # [S] and in the last, shorter one

    @classmethod
    def of(cls, shares: Sequence[float], rows: int, limited: Sequence[bool]) -> Mixture:
        """``limited`` [S] marks the sources whose share is a cap, not to be rounded up."""
        block = block_rows(shares, rows)
        whole = quotas(shares, block, limited)
        last = quotas(shares, rows % block, limited)
        return cls(rows, block, np.array(whole, np.int64), np.array(last, np.int64))

    @property
    def counts(self) -> NDArray[np.int64]:
        """[S] rows of each source in the whole phase."""
        return self.rows // self.block * self.whole + self.last

    def at(
        self, places: NDArray[np.int64], *key: int | str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For rows of the phase: source [n], and how many rows of that source come before [n]."""
        sources, numbers = np.empty_like(places), np.empty_like(places)
        blocks = places // self.block
        for block in np.unique(blocks).tolist():
            here = blocks == block
            parts = self.last if block == self.rows // self.block else self.whole
            drawn, ranks = _drawn(tuple(parts.tolist()), (*key, block))
            sources[here] = drawn[places[here] % self.block]
            numbers[here] = block * self.whole[sources[here]] + ranks[places[here] % self.block]
        return sources, numbers


@lru_cache(maxsize=4)  # steps that follow each other share their block
def _drawn(
    parts: tuple[int, ...], key: tuple[int | str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A block in which source i has ``parts[i]`` rows: sources, and ranks among their own."""
    size, ends = sum(parts), np.cumsum(parts)
    drawn = np.searchsorted(ends, permuted(np.arange(size), size, *key), side="right")
    order = np.argsort(drawn, kind="stable")
    ranks = np.empty(size, np.int64)
    ranks[order] = np.arange(size) - np.repeat(ends - parts, parts)
    return drawn, ranks
