"""Decides what two texts are compared by: the set of their runs of five words, as 64-bit hashes.

A word is a run of letters and digits, case apart. A text of fewer words has one shingle, all of
it; a text without a word has none. Characters of scripts written without spaces (Chinese, Japanese,
Thai, Lao, Khmer, Burmese) are words of their own.

Whole batches are hashed at once in numpy, as a Python loop over words takes ten times as long:
a word's hash is the sum modulo 2^64 of a random number for each byte times base^place, taken as a
difference of running sums over the batch and brought back to place 0 by the inverse power; a mixer
(the finaliser of SplitMix64) follows. Shingles are the same sum over mixed words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pretrain.data.spill import Hashes

_NO_WORD = re.compile(r"[^\w\x00-\x7f]+")  # punctuation and spaces beyond ASCII
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])"
)
RANDOM = np.random.default_rng(0x5EED).integers(1, 2**64, 256, np.uint64)  # for each byte
_IN_WORD = RANDOM.copy()
_IN_WORD[[i for i in range(128) if not chr(i).isalnum()]] = 0  # no part of a word
_BASE = 0xD1342543DE82EF95  # odd, so it has an inverse modulo 2^64
_END = "\n\x00\n"  # of a text in a batch


def shingles_of(texts: Sequence[str], n: int) -> list[Hashes]:
    """The sorted, distinct shingles of ``n`` words of each text."""
    data = np.frombuffer(_END.join(map(_normal, texts)).encode("utf-8", "replace"), np.uint8)
    words, starts = _words(data)
    ends_of_texts = np.searchsorted(starts, np.flatnonzero(data == 0))
    windows = _windows(words, n)
    shingles, start = [], 0
    for end in (*ends_of_texts.tolist(), len(words)):
        if end - start >= n:
            own = _distinct(windows[start : end - n + 1])
        else:
            own = _windows(words[start:end], end - start)[:1]
        shingles.append(own)
        start = end
    return shingles


def _distinct(hashes: Hashes) -> Hashes:
    """``np.unique`` of a few hundred, without what that costs beside the sort."""
    hashes = np.sort(hashes)
    new = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=new[1:])
    return hashes[new]


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a and b| / |a or b| of two sorted sets; 0 when both are empty."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def _normal(text: str) -> str:
    text = text.replace("\x00", " ").lower()
    if text.isascii():
        return text
    return _UNSPACED.sub(r" \1 ", _NO_WORD.sub(" ", text))


def _words(data: np.ndarray) -> tuple[Hashes, np.ndarray]:
    """A hash of every word, and the byte it starts at."""
    values = _IN_WORD[data]
    inside = np.zeros(len(data) + 2, bool)
    inside[1:-1] = values != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    return span_hashes(values, starts, ends), starts


def span_hashes(values: Hashes, starts: np.ndarray, ends: np.ndarray) -> Hashes:
    """A hash of each span of ``values`` (of a batch), wherever it stands."""
    size = 1 << len(values).bit_length()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(_BASE, size)[: len(values)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * _powers(pow(_BASE, -1, 2**64), size)[starts])


@lru_cache(4)
def _powers(base: int, n: int) -> Hashes:
    """1, base, base^2, ... modulo 2^64."""
    powers = np.full(n, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


def _windows(words: Hashes, n: int) -> Hashes:
    """A hash of every ``n`` words in a row."""
    if n < 1 or len(words) < n:
        return words[:0]
    total = words[: len(words) - n + 1].copy()
    for i in range(1, n):
        total += words[i : len(words) - n + 1 + i] * np.uint64(pow(_BASE, i, 2**64))
    return mix(total)


def mix(hashes: Hashes) -> Hashes:
    """The finaliser of SplitMix64: one to one."""
    mixed = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
