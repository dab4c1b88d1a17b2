"""Filters by what a text is: like another, in another language, with words from a list.

``toxic_words`` is a word list and no judgement: it drops a medical text with a listed word and
keeps an insult without one. Use it to take out the plainest, and a judge for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_gen.diversity import written
from data_gen.errors import UsageError
from data_gen.filters import Filter, Row, register
from data_gen.near_duplicates import NearDuplicates

# Plain English obscenities and calls to violence; whole words, with their usual endings.
TOXIC = (
    *(
        "fuck(?:ing|er|ed|s)?",
        "motherfuck(?:ing|er|ers)",
        "shit(?:ty|s)?",
        "bullshit",
        "asshole(?:s)?",
    ),
    *("bitch(?:es)?", "cunt(?:s)?", "whore(?:s)?", "slut(?:s)?", "dickhead(?:s)?", "wanker(?:s)?"),
    *("faggot(?:s)?", "retard(?:s|ed)?", "kill yourself", "kys", "i will kill you", "hope you die"),
)


@register("near_duplicates")
def near_duplicates(threshold: float = 0.8, n: int = 5) -> Filter:
    """Drops a row whose answer shares most word n-grams with that of an earlier kept row."""
    if not 0 < threshold <= 1 or n < 1:
        raise UsageError(f"threshold is above 0 and at most 1, n from 1 on: {threshold!r}, {n!r}")
    finder = NearDuplicates(threshold, n)
    return lambda row: "" if finder.like(written(row)) is None else "near-duplicate"


@register("language")
def language(code: str, at_least: float = 0.9) -> Filter:
    """Drops a row of whose answer less than ``at_least`` is in the language (ISO 639-1)."""
    from rewards.language import known, share_of

    try:
        wanted = known(code)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return lambda row: "" if share_of(written(row), wanted)[0] >= at_least else f"not in {code}"


@register("toxic_words")
def toxic_words(words: str | Sequence[str] = ()) -> Filter:
    """Drops a row whose answer has a word of the list: ours, or ``words``, a file or a list."""
    given = Path(words).read_text().split("\n") if isinstance(words, str) else words
    listed = [re.escape(word.strip()) for word in given if word.strip()] or list(TOXIC)
    pattern = re.compile(rf"\b(?:{'|'.join(listed)})\b", re.IGNORECASE)

    def judge(row: Row) -> str:
        return "word of the toxicity list" if pattern.search(written(row)) else ""

    return judge
