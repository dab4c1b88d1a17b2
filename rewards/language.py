"""A reward for answering in the language that was asked for.

Decided here: what counts as text of a language. Code in fences and backticks, LaTeX, tags and
addresses are taken out; the rest is cut into sentences, each identified by itself (py3langid, 140
languages, its model comes in the wheel), and weighed by its letters. A sentence of fewer than
``MIN_LETTERS`` letters (a letter of a script without spaces counts as three) is told by nothing but
chance, so it is joined to its neighbour; a whole answer that is shorter is given the benefit of the
doubt as long as its script fits, since "42" or "OK" is no other language.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from rewards.answer_text import after_thinking, few_marks
from rewards.errors import did_you_mean
from rewards.registry import register
from rewards.score import Outcome, Score

MIN_LETTERS = 20
MAX_CHARS = 200_000
UNSPACED = 3  # letters of an alphabet that one letter of such a script is worth
# Written so much alike that a sentence does not tell them apart, or one a variety of the other.
SAME = (
    {"no", "nn", "da"},
    {"hr", "bs", "sr"},
    {"zh", "wuu", "yue"},
    {"ar", "arz", "ary"},
    {"id", "ms"},
    {"uz", "uzs"},
)
ALIASES = {"nb": "no", "fil": "tl", "iw": "he", "in": "id", "cmn": "zh"}
# Scripts of languages that are not written in Latin letters, for answers too short to identify.
_SCRIPTS = {
    "Cyrillic": "be bg kk ky mk mn ru sr tg tt uk ba",
    "Arabic": "ar ary arz fa ps sdh ug ur ku",
    "Han": "zh ja yue wuu",
    "Hiragana": "ja",
    "Katakana": "ja",
    "Hangul": "ko",
    "Devanagari": "hi mr ne sa gom",
    "Greek": "el grc",
    "Hebrew": "he hbo",
    "Thai": "th",
    "Bengali": "bn as",
    "Tamil": "ta",
    "Telugu": "te",
    "Gujarati": "gu",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Gurmukhi": "pa",
    "Georgian": "ka",
    "Armenian": "hy",
    "Ethiopic": "am",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my",
    "Sinhala": "si",
    "Oriya": "or",
    "Tibetan": "dz",
}
_NOT_TEXT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.{0,300}?\\\]|\\\(.{0,300}?\\\)"
    r"|\\[a-zA-Z]+|<[^<>\n]{0,100}>|https?://\S+",
    re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def _check_language(fields: Mapping[str, Any]) -> None:
    if "language" in fields:
        known(fields["language"])


@register("language", settings=["thinking", "at_least"], check=_check_language)
def language(
    completion: str, language: str, thinking: bool = False, at_least: float = 0.9
) -> Score:
    """Share of the answer's letters that stand in sentences of ``language``, an ISO 639-1 code.

    CORRECT from ``at_least`` on, where the value is 1. ``thinking``: judge the thinking too.
    UNPARSEABLE, 0, for an empty answer.

    Can it be hacked? Yes: an answer of digits, or all in a code fence, has no language and is worth
    1, and so is any fluent text on another subject. Sum it with a reward for being right. Up to a
    tenth of foreign text passes. Languages close to one another (``SAME``) are not told apart.
    """
    code = known(language)
    text: str | None = completion if thinking else after_thinking(completion)
    if text is None or not text.strip():
        return Score(0.0, Outcome.UNPARSEABLE)
    share, certain = share_of(text, code)
    detail = "" if certain else "too short to identify: judged by its script"
    if share >= at_least:
        return Score(1.0, Outcome.CORRECT, {"share": share}, detail)
    return Score(share, Outcome.WRONG, {"share": share}, detail)


def known(code: Any) -> str:
    """The code as the identifier has it. Raises ValueError for a language it does not know."""
    labels = set(_identifier().labels) - {"zxx"}
    found = str(code).strip().lower().replace("_", "-").partition("-")[0]
    found = ALIASES.get(found, found)
    if found not in labels:
        near = did_you_mean(str(code), labels)
        raise ValueError(f"unknown language {code!r}: give an ISO 639-1 code such as 'de'.{near}")
    return found


def share_of(text: str, code: str) -> tuple[float, bool]:
    """Share of the letters in sentences of a language; and whether there was enough to tell."""
    plain = _NOT_TEXT.sub(" ", few_marks(text[:MAX_CHARS]))
    accepted = {code}.union(*(group for group in SAME if code in group))
    pieces = list(_pieces(plain))
    total = sum(weight for _, weight in pieces)
    if total < MIN_LETTERS:
        return (1.0 if not total else _share_in_script(plain, code)), False
    identify = _identifier().classify
    right = sum(weight for piece, weight in pieces if identify(piece)[0] in accepted)
    return right / total, True


def _pieces(text: str) -> list[tuple[str, int]]:
    """Sentences with their letters; short ones are joined to what follows, the last to the last."""
    found: list[tuple[str, int]] = []
    waiting, weight = [], 0
    for sentence in _SENTENCE.split(text):
        waiting.append(sentence)
        weight += _letters(sentence)
        if weight >= MIN_LETTERS:
            found.append((" ".join(waiting), weight))
            waiting, weight = [], 0
    if weight and found:
        piece, before = found.pop()
        return [*found, (" ".join([piece, *waiting]), before + weight)]
    return found or ([(" ".join(waiting), weight)] if weight else [])


def _letters(text: str) -> int:
    """How many letters; those of scripts without spaces count as ``UNSPACED``."""
    letters = sum(map(str.isalpha, text))
    if text.isascii():
        return letters
    return letters + (UNSPACED - 1) * len(_patterns()["unspaced"].findall(text))


def _share_in_script(text: str, code: str) -> float:
    """Share of the letters in a script that the language is written in."""
    letters = [char for char in text if char.isalpha()]
    fits = [name for name, codes in _SCRIPTS.items() if code in codes.split()] or ["Latin"]
    right = sum(1 for char in letters if any(_patterns()[name].match(char) for name in fits))
    return right / len(letters) if letters else 1.0


@functools.cache
def _patterns() -> dict[str, Any]:
    import regex

    found = {name: regex.compile(rf"\p{{{name}}}") for name in (*_SCRIPTS, "Latin")}
    found["unspaced"] = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}]")
    return found


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
