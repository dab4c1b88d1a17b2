"""ROUGE-L between short texts, and a pool of texts that are all unlike one another.

ROUGE-L is the F1 of the longest common subsequence of words (Lin 2004). Its length is found with
bits (Hyyro 2004): one row of the table is one integer, so a pair costs as many steps as it has
words.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

_WORD = re.compile(r"\w+")


@dataclass(slots=True)
class Pool:
    """Texts of which no two have a ROUGE-L of ``limit`` or more."""

    limit: float
    _texts: list[tuple[list[str], Counter[str]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> bool:
        """Take the text in; False, and left out, where one there is like it."""
        words = words_of(text)
        counts = Counter(words)
        for other, others in self._texts:
            least = self.limit * (len(words) + len(other)) / 2  # the common length that is too long
            if min(len(words), len(other)) < least or (counts & others).total() < least:
                continue  # it cannot be reached
            if common_length(words, other) >= least:
                return False
        self._texts.append((words, counts))
        return True


def rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1]; 0 where one has no word."""
    first, second = words_of(a), words_of(b)
    if not first or not second:
        return 0.0
    return 2 * common_length(first, second) / (len(first) + len(second))


def common_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & every
    return len(a) - row.bit_count()


def words_of(text: str) -> list[str]:
    """Lower-case words of letters and digits."""
    return _WORD.findall(text.lower())
