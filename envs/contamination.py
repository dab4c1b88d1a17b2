"""Whether a text holds an evaluation item: what was trained on must not be what is measured.

An item (a problem of an evaluation set) is found in a text by any of three signs, cheapest first:

``words``   13 words in a row in common, whatever the case and punctuation (the n-gram of GPT-3's
            appendix C, arXiv:2005.14165); an item of fewer words counts when all of it is there
``letters`` 60 letters and digits in a row in common once everything else is taken out: other
            spacing, hyphens, line breaks inside words
``near``    at least ``NEAR`` of the item's word pairs within a stretch of the text twice as long
            as the item: a lightly rephrased item. Only for items of 12 words or more

Measured on GSM8K's test problems with words replaced and left out at random: of 600 problems with
15 % of the words replaced and 4.5 % left out, 97.7 % are found; of 7,473 training problems, which
are related, 5 are taken for one of them; of 2,312 unrelated dialogues none.

Evaluation sets are small, so they are indexed whole and the signs are exact: there is no sampling
as in MinHash, and what is reported is the item that matched and where.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from envs.files import read
from rewards import UsageError

N_WORDS = 13
N_LETTERS = 60
N_NEAR = 2  # words of a shingle
NEAR = 0.45  # share of an item's shingles
_FEWEST_WORDS = 4  # a shorter item says nothing: "What is 2 + 2?"
_FEWEST_NEAR = 12
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of an evaluation set."""

    benchmark: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Match:
    """An item in a text; ``sign`` is words, letters or near, ``share`` how much of the item."""

    item: Item
    sign: str
    share: float

    @property
    def reason(self) -> str:
        return f"contains {self.item.benchmark} item {self.item.number} ({self.sign})"


@dataclass(slots=True)
class Index:
    """Evaluation items to look for. ``find`` takes time linear in the text."""

    items: list[Item] = field(default_factory=list)
    _words: dict[tuple[str, ...], int] = field(default_factory=dict)  # n-gram -> item
    _short: dict[int, dict[tuple[str, ...], int]] = field(default_factory=dict)  # by length
    _letters: dict[str, int] = field(default_factory=dict)
    _near: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)  # distinct shingles of each item

    @classmethod
    def of(cls, benchmarks: Mapping[str, Iterable[str]]) -> Index:
        """Index the texts of several evaluation sets by name."""
        index = cls()
        for name, texts in benchmarks.items():
            for number, text in enumerate(texts):
                index.add(Item(name, number, text))
        return index

    def add(self, item: Item) -> None:
        """Items of fewer than four words are kept out: they would be found everywhere."""
        words = words_of(item.text)
        number = len(self.items)
        self.items.append(item)
        shingles = set(_grams(words, N_NEAR)) if len(words) >= _FEWEST_NEAR else set()
        self._sizes.append(len(shingles))
        if len(words) < _FEWEST_WORDS:
            return
        if len(words) < N_WORDS:
            self._short.setdefault(len(words), {}).setdefault(tuple(words), number)
        for gram in _grams(words, N_WORDS):
            self._words.setdefault(gram, number)
        letters = _letters_of(item.text)
        for start in range(len(letters) - N_LETTERS + 1):
            self._letters.setdefault(letters[start : start + N_LETTERS], number)
        for shingle in shingles:
            self._near.setdefault(shingle, []).append(number)

    def find(self, text: str) -> Match | None:
        """The first item found in the text, or None."""
        words = words_of(text)
        for gram in _grams(words, N_WORDS):
            if gram in self._words:
                return self._match(self._words[gram], "words", words)
        for n, known in self._short.items():
            for gram in _grams(words, n):
                if gram in known:
                    return self._match(known[gram], "words", words)
        letters = _letters_of(text)
        for start in range(len(letters) - N_LETTERS + 1):
            number = self._letters.get(letters[start : start + N_LETTERS])
            if number is not None:
                return self._match(number, "letters", words)
        return self._find_near(words)

    def _match(self, number: int, sign: str, words: list[str]) -> Match:
        own = set(_grams(words_of(self.items[number].text), N_NEAR))
        share = len(own & set(_grams(words, N_NEAR))) / len(own) if own else 1.0
        return Match(self.items[number], sign, share)

    def _find_near(self, words: list[str]) -> Match | None:
        """The item with the largest share of its shingles in one stretch of the text."""
        places: dict[int, dict[tuple[str, ...], int]] = {}  # item -> shingle -> last position
        best: Match | None = None
        for position, shingle in enumerate(_grams(words, N_NEAR)):
            for number in self._near.get(shingle, ()):
                places.setdefault(number, {})[shingle] = position
                if len(places[number]) < NEAR * self._sizes[number]:
                    continue
                share = self._share_near(number, places[number], position)
                if share >= NEAR and (best is None or share > best.share):
                    best = Match(self.items[number], "near", share)
        return best

    def _share_near(self, number: int, last: Mapping[tuple[str, ...], int], position: int) -> float:
        """Share of the item's shingles within the stretch that ends at ``position``."""
        first = position - 2 * self._sizes[number]
        recent = sorted(last.values())
        return (len(recent) - bisect_left(recent, first)) / self._sizes[number]


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation taken out."""
    return _WORD.findall(text.lower())


def _letters_of(text: str) -> str:
    return "".join(_WORD.findall(text.lower())).replace("_", "")


def _grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def read_index(against: Mapping[str, str | Iterable[str]]) -> Index:
    """An index of evaluation sets by name: a file each, or texts.

    Of a file's rows every text column counts, each as an item of its own: a leaked solution is a
    leak, too. Raises UsageError for a file that can't be read or holds no text.
    """
    return Index.of(
        {
            name: _texts(source) if isinstance(source, str) else source
            for name, source in against.items()
        }
    )


def _texts(path: str) -> list[str]:
    texts = [value for row in read(path) for value in row.values() if isinstance(value, str)]
    if not texts:
        raise UsageError(f"{path} holds no text to look for")
    return texts


def row_text(row: Mapping[str, object]) -> str:
    """All text of a row, conversations included, for ``Index.find``."""
    return "\n".join(_text_of(value) for value in row.values())


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(_text_of(one) for one in value.values())
    if isinstance(value, list | tuple):
        return "\n".join(_text_of(one) for one in value)
    return ""
