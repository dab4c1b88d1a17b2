"""Decides which texts look like running text: the rules of Gopher, C4 and FineWeb.

Formulas and thresholds are the papers', as datatrove implements them (its filters are the reference
of the tests, with the same reasons for dropping); words and sentences are our own, the same for all
rules (``pretrain/data/words.py``), and what depends on the language comes from
``pretrain/data/language_rules.py`` by the document's ``metadata["language"]``.

The n-gram rules, where the time goes, first bound what a text could have repeated and follow the
definition word by word only where the bound is not enough: same verdicts, most texts for the price
of a sort.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from datatrove.utils.text import TERMINAL_PUNCTUATION
from numpy.typing import NDArray

from pretrain.data.language_rules import LanguageRules, rules_for
from pretrain.data.words import Words, is_symbol, words_of

if TYPE_CHECKING:
    from datatrove.data import Document

_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_LINE_BREAK = re.compile(r"\n+")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_LINE_ENDS = frozenset("\"'”“’»«」』") | TERMINAL_PUNCTUATION
_TERMINAL = re.escape("".join(TERMINAL_PUNCTUATION))
_SENTENCE_END = re.compile(rf"""[{_TERMINAL}…]+["'”“’»)\]」』]*(?=\s|$|[\u3040-\u9fff])""")


class GopherQuality:
    """Length, word length, symbols, bullets, ellipses, letters, stop words (Rae et al. 2021).

    ``min_alpha_words`` replaces the language's own share of words with a letter.
    """

    name = "gopher_quality"

    def __init__(
        self,
        min_words: int = 50,
        max_words: int = 100_000,
        min_stop_words: int = 2,
        min_alpha_words: float | None = None,
        max_symbols: float = 0.1,
    ) -> None:
        self.min_words, self.max_words = min_words, max_words
        self.min_stop_words = min_stop_words
        self.min_alpha_words = min_alpha_words
        self.max_symbols = max_symbols

    def check(self, document: Document) -> str | None:
        text, rules = document.text, rules_for(document.metadata.get("language"))
        words = words_of(text)
        n_real = characters = 0
        for word, count in words.counts.items():
            if word.isalnum() or not is_symbol(word):
                n_real += count
                characters += count * len(word)
        if n_real < self.min_words or not n_real:
            return "gopher_short_doc"
        if n_real > self.max_words:
            return "gopher_long_doc"
        if characters / n_real < rules.word_length[0]:
            return "gopher_below_avg_threshold"
        if characters / n_real > rules.word_length[1]:
            return "gopher_above_avg_threshold"
        return self._symbols(text, words) or self._vocabulary(words, rules)

    def _symbols(self, text: str, words: Words) -> str | None:
        n_words = len(words.words)
        if text.count("#") / n_words > self.max_symbols:
            return "gopher_too_many_hashes"
        if (text.count("...") + text.count("…")) / n_words > self.max_symbols:
            return "gopher_too_many_ellipsis"
        lines = text.splitlines()
        if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
            return "gopher_too_many_bullets"
        if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
            return "gopher_too_many_end_ellipsis"
        return None

    def _vocabulary(self, words: Words, rules: LanguageRules) -> str | None:
        with_letter = sum(
            count
            for word, count in words.counts.items()
            if word.isalpha() or any(map(str.isalpha, word))
        )
        least = rules.alpha_words if self.min_alpha_words is None else self.min_alpha_words
        if with_letter / len(words.words) < least:
            return "gopher_below_alpha_threshold"
        if rules.stop_words and len(rules.stop_words & words.counts.keys()) < self.min_stop_words:
            return "gopher_enough_stop_words"
        return None


class GopherRepetition:
    """Shares of a text that repeat: lines, paragraphs, the top n-gram, all repeated n-grams."""

    name = "gopher_repetition"

    def __init__(
        self,
        lines: float = 0.3,
        line_characters: float = 0.2,
        top_n_grams: Sequence[tuple[int, float]] = ((2, 0.20), (3, 0.18), (4, 0.16)),
        repeated_n_grams: Sequence[tuple[int, float]] = (
            *((5, 0.15), (6, 0.14), (7, 0.13)),
            *((8, 0.12), (9, 0.11), (10, 0.10)),
        ),
    ) -> None:
        self.lines, self.line_characters = lines, line_characters
        self.top_n_grams = top_n_grams
        self.repeated_n_grams = repeated_n_grams

    def check(self, document: Document) -> str | None:
        text = document.text
        if not text:
            return "empty"
        return self._pieces(text) or self._n_grams(text, words_of(text))

    def _pieces(self, text: str) -> str | None:
        for name, pieces in (
            ("para", _PARAGRAPH_BREAK.split(text.strip())),
            ("line", _LINE_BREAK.split(text)),
        ):
            number, characters = repeated(pieces)
            if number / len(pieces) > self.lines:
                return f"dup_{name}_frac"
            if characters / len(text) > self.line_characters:
                return f"dup_{name}_char_frac"
        return None

    def _n_grams(self, text: str, words: Words) -> str | None:
        for n, most in self.top_n_grams:
            if len(words.words) >= n and top_n_gram_characters(words, n) > most * len(text):
                return f"top_{n}_gram"
        for n, most in self.repeated_n_grams:
            characters = repeated_n_gram_characters(words, n, most * len(text))
            if characters > most * len(text):
                return f"duplicated_{n}_n_grams"
        return None


class C4:
    """Line and page rules of C4 (Raffel et al. 2020). Changes the text: bad lines go.

    ``terminal_punctuation`` drops lines that end in none, as the paper does; off by default, since
    it costs far more text than it is worth (Penedo et al. 2024, section 3.5).
    """

    name = "c4"

    def __init__(
        self,
        terminal_punctuation: bool = False,
        min_sentences: int = 5,
        min_words_per_line: int = 3,
        curly_bracket: bool = True,
    ) -> None:
        self.terminal_punctuation = terminal_punctuation
        self.min_sentences = min_sentences
        self.min_words_per_line = min_words_per_line
        self.curly_bracket = curly_bracket

    def check(self, document: Document) -> str | None:
        rules = rules_for(document.metadata.get("language"))
        min_words = 1 if rules.spaceless else self.min_words_per_line
        sentences, kept = 0, []
        for whole_line in document.text.splitlines():
            line = whole_line.strip()
            words = line.split()
            if len(words) < min_words or (len(line) > 1000 and max(map(len, words)) > 1000):
                continue
            if "[" in line:
                line = _CITATION.sub("", line)
            if self.terminal_punctuation and (line[-1:] not in _LINE_ENDS or line.endswith("...")):
                continue
            lower = line.lower()
            if "lorem ipsum" in lower:
                return "lorem_ipsum"
            if "javascript" in lower:
                continue
            if self.curly_bracket and "{" in line:
                return "curly_bracket"
            if any(phrase in lower for phrase in rules.policy):
                continue
            sentences += n_sentences(line)
            kept.append(line)
        if sentences < self.min_sentences:
            return "too_few_sentences"
        document.text = "\n".join(kept).strip()
        return None


class FineWeb:
    """Punctuated lines, short lines, repeated characters, lists (Penedo et al. 2024)."""

    name = "fineweb"

    def __init__(
        self,
        line_punctuation: float = 0.12,
        short_lines: float = 0.67,
        short_line: int = 30,
        repeated_characters: float = 0.01,
        line_breaks: float = 0.3,
    ) -> None:
        self.line_punctuation = line_punctuation
        self.short_lines, self.short_line = short_lines, short_line
        self.repeated_characters = repeated_characters
        self.line_breaks = line_breaks

    def check(self, document: Document) -> str | None:
        text = document.text
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty"
        if sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) < self.line_punctuation * len(
            lines
        ):
            return "line_punct_ratio"
        # An ideograph says as much as two or three letters.
        spaceless = rules_for(document.metadata.get("language")).spaceless
        short = self.short_line // 3 if spaceless else self.short_line
        if sum(len(line) <= short for line in lines) / len(lines) > self.short_lines:
            return "short_line_ratio"
        breaks = text.count("\n")
        if repeated(lines)[1] / (len(text) - breaks) > self.repeated_characters:
            return "char_dup_ratio"
        if breaks / len(words_of(text).words) > self.line_breaks:
            return "list_ratio"
        return None


def repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """How many pieces were there before, and their characters."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    number = characters = 0
    for piece in pieces:
        if piece in seen:
            number += 1
            characters += len(piece)
        seen.add(piece)
    return number, characters


def n_sentences(line: str) -> int:
    """Sentences of a line: its sentence ends, and one more when it does not end in one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    return len(ends) + (not ends or ends[-1] < len(line))


def top_n_gram_characters(words: Words, n: int) -> int:
    """Characters, spaces between words included, of the most frequent n-gram times its number;
    the first of equally frequent ones. Needs n words."""
    _, first, counts = np.unique(words.n_grams(n), return_index=True, return_counts=True)
    most = counts.max()
    start = first[counts == most].min()
    return int((words.lengths[start : start + n].sum() + n - 1) * most)


def repeated_n_gram_characters(words: Words, n: int, limit: float) -> int:
    """Characters in n-grams that came before, none counted twice: at a repeated n-gram the reading
    goes on behind it. Exact when above ``limit``; otherwise it may be an upper bound."""
    hashes = words.n_grams(n)
    unique, first = np.unique(hashes, return_index=True)
    if len(unique) == len(hashes):
        return 0
    again = np.ones(len(hashes), bool)
    again[first] = False
    bound = int(words.lengths[_covered(again, n)].sum())
    return bound if bound <= limit else _read_on(hashes.tolist(), words.lengths.tolist(), n)


def _covered(starts: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Which words lie in one of the n-grams that start where ``starts`` is true."""
    edges = np.zeros(len(starts) + n, np.int64)
    edges[: len(starts)] += starts
    edges[n:] -= starts
    return np.cumsum(edges)[:-1] > 0


def _read_on(hashes: list[int], lengths: list[int], n: int) -> int:
    seen: set[int] = set()
    characters = at = 0
    while at < len(hashes):
        if hashes[at] in seen:
            characters += sum(lengths[at : at + n])
            at += n
        else:
            seen.add(hashes[at])
            at += 1
    return characters
