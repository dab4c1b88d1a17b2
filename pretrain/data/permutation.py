"""Decides in which order numbered rows are read: a keyed permutation, computed at any place.

A Feistel network permutes 0..2^(2b)-1 whatever its round function is; results outside 0..n-1 are
sent through it again until they fall inside ("cycle walking", Black and Rogaway 2002, method 2).
So the i-th row of an epoch costs the same whatever i and n are, and nothing is kept in memory.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_ODD = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment and multipliers (Steele et al. 2014)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def permuted(places: NDArray[np.int64], size: int, *key: int | str) -> NDArray[np.int64]:
    """What stands at ``places`` of a permutation of 0..size-1 that ``key`` names.

    Raises ValueError for a place outside 0..size-1.
    """
    if len(places) and not (int(places.min()) >= 0 and int(places.max()) < size):
        raise ValueError(f"places must lie in 0..{size - 1}")
    bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(key)
    found = _feistel(places.astype(np.uint64), bits, keys)
    while len(outside := np.flatnonzero(found >= np.uint64(size))):
        found[outside] = _feistel(found[outside], bits, keys)
    return found.astype(np.int64)


def _round_keys(key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


def _feistel(
    values: NDArray[np.uint64], bits: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + _ODD
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
