"""Decides what a word is: the one tokenisation that every heuristic rule shares.

A word is a run of letters, digits and marks, with hyphens, dots, slashes and the like inside it
("well-known", "libc6.deb", "a/b"); every other character that is not white space is a symbol. That
makes as many words as spaCy's rules, which the papers' thresholds are used with (0.99 of them on
English manuals). In scripts written without spaces every character is a word, since no dictionary
is at hand. One pass of a regular expression over the text; the rules that follow in a chain find
the result of the last texts again.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

# Combining marks that Python's \w leaves out: without them Hindi or pointed Hebrew falls apart.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
)
# Thai, Lao, Tibetan, Myanmar, Khmer, kana and ideographs.
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_SYMBOL = rf"[^\w\s{_MARKS}]"
_JOINTS = "[-.'’@+&:/=]+"
_SPACED_WORDS = re.compile(rf"[\w{_MARKS}]+(?:{_JOINTS}[\w{_MARKS}]+)*|{_SYMBOL}")
_LETTERS = rf"(?:[^\W{_SPACELESS}]|[{_MARKS}])+"
_ANY_WORDS = re.compile(rf"[{_SPACELESS}]|{_LETTERS}(?:{_JOINTS}{_LETTERS})*|{_SYMBOL}")
_HAS_SPACELESS = re.compile(f"[{_SPACELESS}]")


@dataclass(frozen=True)
class Words:
    """The words of one text, and what several rules ask of them."""

    words: list[str]

    @cached_property
    def counts(self) -> Counter[str]:
        """Distinct words, in order of first appearance, with their number."""
        return Counter(self.words)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """A well-mixed 64-bit number for each word, equal for equal words."""
        number = {word: i for i, word in enumerate(self.counts, start=1)}
        return _mix(np.fromiter(map(number.__getitem__, self.words), np.uint64, len(self.words)))

    def n_grams(self, n: int) -> NDArray[np.uint64]:
        """A 64-bit hash of every n words in a row; with 10^5 of them two differing ones are
        equal with a chance of 3e-10."""
        count = len(self.words) - n + 1
        hashes = np.zeros(max(count, 0), np.uint64)
        for i in range(n if count > 0 else 0):
            hashes = hashes * _FACTOR + self.ids[i : i + count]
        return hashes


@lru_cache(maxsize=4)
def words_of(text: str) -> Words:
    """The words of the text; the last four texts are remembered."""
    pattern = _ANY_WORDS if not text.isascii() and _HAS_SPACELESS.search(text) else _SPACED_WORDS
    return Words(pattern.findall(text))


def is_symbol(word: str) -> bool:
    """Whether a word of ``words_of`` has neither letter nor digit."""
    return not any(map(str.isalnum, word))


_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): a permutation of the 64-bit numbers."""
    z = numbers * _FACTOR
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
