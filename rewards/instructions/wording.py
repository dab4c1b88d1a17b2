"""Instructions on words and letters: which ones, how often, how many, in which case and language.

A word is a run of letters, digits and underscores. Keywords are looked for regardless of case;
within words, too, except forbidden ones, which must not stand as a word of their own.
"""

from __future__ import annotations

import re

from rewards.instructions.kinds import Language, Relation, holds, kind
from rewards.language import share_of

_WORD = re.compile(r"\w+")
# A full stop after one of these does not end a sentence, nor one after a single letter or a digit
# at the start of a line.
_ABBREVIATIONS = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "e.g", "i.e", "etc", "vol", "fig"}
    | {"dept", "inc", "ltd", "co", "approx", "a.m", "p.m", "u.s"}
)
_STOP = re.compile(
    r"(?<![.!?…。！？])[.!?…。！？]++[\"'”’)\]*_]*+(?=\s|$)|(?<=[。！？])(?![.!?…。！？])|\n\s*\n"
)
_GOES_ON = re.compile(r"\s+[a-z]")
_COMMAS = (",", "，", "、")


@kind("keywords:existence")
def keywords_exist(text: str, keywords: list[str]) -> bool:
    """Each keyword is there."""
    folded = text.casefold()
    return all(keyword.casefold() in folded for keyword in keywords)


@kind("keywords:frequency")
def keyword_frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword is there so many times."""
    return holds(text.casefold().count(keyword.strip().casefold()), relation, frequency)


@kind("keywords:forbidden_words")
def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """None of the words is there."""
    joined = "|".join(re.escape(word) for word in forbidden_words)
    return re.search(rf"(?<!\w)(?:{joined})(?!\w)", text, re.IGNORECASE) is None


@kind("keywords:letter_frequency")
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """A letter, of either case, is there so many times."""
    return holds(text.casefold().count(letter.casefold()), let_relation, let_frequency)


@kind("language:response_language")
def response_language(text: str, language: Language) -> bool:
    """Most of the text is in the language."""
    return share_of(text, language)[0] > 0.5


@kind("length_constraints:number_words")
def number_words(text: str, num_words: int, relation: Relation) -> bool:
    """So many words."""
    return holds(sum(1 for _ in _WORD.finditer(text)), relation, num_words)


@kind("length_constraints:number_sentences")
def number_sentences(text: str, num_sentences: int, relation: Relation) -> bool:
    """So many sentences."""
    return holds(count_sentences(text), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Sentences end with ``.``, ``!`` or ``?`` before white space, or at an empty line.

    Not with an abbreviation, an initial, the number of a list, or dots that a small letter follows.
    """
    n, start = 0, 0
    for stop in _STOP.finditer(text):
        before = text[max(start, stop.start() - 20) : stop.start()]
        last = before.rsplit(maxsplit=1)[-1].lower().lstrip("(\"'*") if before.strip() else ""
        marker = before.strip() == last and last.isdecimal()  # the "1." of a list
        if stop[0] == "." and (last in _ABBREVIATIONS or marker or _is_initial(last)):
            continue
        if stop[0] in ("...", "…") and _GOES_ON.match(text, stop.end()):
            continue
        n += bool(_WORD.search(text, start, stop.start()))
        start = stop.end()
    return n + bool(_WORD.search(text, start))


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isalpha() and word not in "ia"


@kind("change_case:english_capital")
def english_capital(text: str) -> bool:
    """English, and no small letter."""
    return text.isupper() and share_of(text, "en")[0] > 0.5


@kind("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """English, and no capital letter."""
    return text.islower() and share_of(text, "en")[0] > 0.5


@kind("change_case:capital_word_frequency")
def capital_words(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words all in capitals."""
    n = sum(1 for word in _WORD.finditer(text) if word[0].isupper())
    return holds(n, capital_relation, capital_frequency)


@kind("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """No comma, of the Latin or the Chinese and Japanese kind."""
    return not any(comma in text for comma in _COMMAS)
