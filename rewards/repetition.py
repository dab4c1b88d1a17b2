"""Penalties for text that repeats itself: by n-grams of words, and by how well it compresses.

Both look at the whole completion, thinking included, and only ever punish. A word is a run of
letters and digits, or one letter of a script that writes no spaces (Chinese, Japanese, Thai);
everything else, case included, does not count.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from rewards.registry import register
from rewards.score import Outcome, Score

MAX_CHARS = 200_000  # of a completion that is looked at; the rest is passed over


def words(text: str) -> list[str]:
    """The words of a text, case folded; see the module docstring."""
    return [word.casefold() for word in _word_pattern().findall(text)]


@functools.cache
def _word_pattern() -> Any:
    import regex

    unspaced = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    return regex.compile(rf"{unspaced}\p{{M}}*+|(?:(?!{unspaced})[\p{{L}}\p{{M}}\p{{N}}])++")


def _check_n(fields: Mapping[str, Any]) -> None:
    n = fields.get("n", 1)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")


@register("repetition", settings=["n"], check=_check_n)
def repetition(completion: str, n: int = 20) -> Score:
    """Minus the share of n-grams of words that were there before: 0 (CORRECT) to -1.

    A variation on the penalty of arXiv:2502.03373, which marks tokens; here it is one number. With
    the default of 20 natural text and worked solutions score 0; 3 is sharp enough to punish a list.

    Can it be hacked? A loop that changes one word in every n is not seen (a counter in each line is
    enough), nor is one within a single word, which ``compressibility`` sees. Saying less is never
    punished.
    """
    grams = _grams(words(completion[:MAX_CHARS]), n)
    if len(grams) < 2:
        return Score(0.0, Outcome.CORRECT)
    share = 1 - len(set(grams)) / len(grams)
    return Score(-share, Outcome.WRONG if share else Outcome.CORRECT)


def _grams(found: Sequence[Hashable], n: int) -> list[int]:
    """A number for the n-gram at each place, equal for equal ones; time grows with log n.

    A gram of ``width + step`` is told by the two of ``width`` that start ``step`` apart.
    """
    width, grams = 1, _numbered(found)
    while width < n:
        step = min(width, n - width)
        grams = _numbered(zip(grams, grams[step:], strict=False))
        width += step
    return grams


def _numbered(things: Iterable[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(one, len(numbers)) for one in things]


@register("compressibility", settings=["limit"])
def compressibility(completion: str, limit: float = 6.0) -> Score:
    """-1 when zlib makes the text more than ``limit`` times shorter, else 0 (CORRECT).

    ``parts["ratio"]`` is bytes of UTF-8 over bytes compressed. Worked solutions of school problems
    have 1.5 on average and at most 3.5, single Python functions at most 5.1.

    Can it be hacked? Repetition mixed with enough noise stays below the limit, and so does one
    further away than zlib's window of 32 kB. A text of under ``limit`` * 20 bytes never reaches it.
    """
    raw = completion[:MAX_CHARS].encode(errors="surrogatepass")
    ratio = len(raw) / len(zlib.compress(raw)) if raw else 1.0
    if ratio > limit:
        return Score(-1.0, Outcome.WRONG, {"ratio": ratio})
    return Score(0.0, Outcome.CORRECT, {"ratio": ratio})
