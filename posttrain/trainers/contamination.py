"""Whether training data holds what a model will be evaluated on.

A conversation is contaminated by an evaluation item when they share 13 words in a row (Brown et
al., arXiv:2005.14165, appendix C), words being lower-case runs of letters and digits. An item with
fewer words counts when a message says exactly it. Only an item's question is compared: what its
answer says, others say too.

Left out: paraphrases, translations, and items that other training data holds half of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError
from posttrain.trainers.conversations import Conversation, at_row, name_of, read_rows

WORDS = 13
_WORD = re.compile(r"[^\W_]+")
_QUESTIONS = ("prompt", "question", "problem", "instruction", "query", "text")

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A conversation that holds an item of an evaluation set."""

    row: int  # index into the conversations
    evaluation: str  # name of the set
    text: str  # the words they share


def contamination(
    rows: Sequence[Conversation], against: Mapping[str, str | Path | Sequence[Mapping[str, Any]]]
) -> list[Hit]:
    """The first hit of each conversation. Raises UsageError for an item without a question."""
    long: dict[Gram, str] = {}
    short: dict[Gram, str] = {}
    for name, source in against.items():
        for item in _questions(source):
            words = _words(item)
            target = long if len(words) >= WORDS else short
            for gram in _grams(words) if target is long else [words]:
                target.setdefault(gram, name)
    hits = []
    for row, conversation in enumerate(rows if against else ()):
        found = next(_found(conversation, long, short), None)
        if found:
            hits.append(Hit(row, *found))
    return hits


def _found(
    conversation: Conversation, long: Mapping[Gram, str], short: Mapping[Gram, str]
) -> Iterator[tuple[str, str]]:
    for message in conversation.messages:
        words = _words(message["content"])
        if words in short:
            yield short[words], " ".join(words)
        for gram in _grams(words):
            if gram in long:
                yield long[gram], " ".join(gram)


def _grams(words: Gram) -> Iterator[Gram]:
    return (words[i : i + WORDS] for i in range(len(words) - WORDS + 1))


def _words(text: str) -> Gram:
    return tuple(_WORD.findall(text.lower()))


def _questions(source: Any) -> Iterator[str]:
    for number, row in enumerate(read_rows(source), 1):
        with at_row(name_of(source), number):
            yield from (text for text in _asked(row) if _words(text))


def _asked(row: Mapping[str, Any]) -> list[str]:
    """What an item asks: its question, or all that is said before the assistant."""
    for column in _QUESTIONS:
        if isinstance(row.get(column), str):
            return [row[column]]
    messages = row.get("messages") or row.get("prompt")
    if isinstance(messages, Sequence):
        return [str(m.get("content", "")) for m in messages if m.get("role") == "user"]
    raise UsageError(
        f"no question in it (found: {sorted(row)}); looked for {', '.join(_QUESTIONS)}, messages"
    )
