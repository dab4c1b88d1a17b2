"""Decides what is counted of a chain of steps: per step, reason and language, with examples.

A file of counts is what the funnel page reads; stages over files write the same form:
``{"stage", "in", "kept", "characters_in", "characters_kept", "words_kept",
"dropped": {reason: number}, "dropped_words": {reason: number},
"by_language": {language: {"in", "kept", ...}}, "examples": {reason: [excerpt, ...]}}``.

Words are what white space parts: before a tokenizer is chosen they stand for tokens. Those of a
page that is still HTML are not counted. The stage that tokenises has ``tokens_kept``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

EXAMPLES, EXCERPT = 3, 300
UNKNOWN = "unknown"  # language of a document that no step has judged


@dataclass
class StepCounts:
    """Of one step."""

    stage: str
    # in, kept, changed, characters_in, characters_kept, words_kept
    documents: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_words: Counter[str] = field(default_factory=Counter)
    by_language: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self, before: str, after: str, language: str, reason: str | None, *, markup: bool = False
    ) -> None:
        """One document: its text before and after the step, why it was dropped, and whether what
        was kept or dropped is HTML."""
        numbers = {"in": 1, "characters_in": len(before)}
        words = 0 if markup else count_words(after if reason is None else before)
        if reason is None:
            numbers |= {"kept": 1, "characters_kept": len(after), "words_kept": words}
            numbers["changed"] = int(before is not after)  # JSON would say false
        else:
            self.dropped[reason] += 1
            self.dropped_words[reason] += words
            examples = self.examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append(before[:EXCERPT])
        for counter in (self.documents, self.by_language.setdefault(language, Counter())):
            counter.update(numbers)

    def as_json(self) -> dict[str, Any]:
        keys = ("in", "kept", "changed", "characters_in", "characters_kept", "words_kept")
        return {
            "stage": self.stage,
            **{key: self.documents[key] for key in keys},
            "dropped": dict(self.dropped.most_common()),
            "dropped_words": dict(self.dropped_words.most_common()),
            "by_language": {name: dict(c) for name, c in sorted(self.by_language.items())},
            "examples": self.examples,
        }


@lru_cache(4)
def count_words(text: str) -> int:
    """The steps behind one another ask about the same text."""
    return len(text.split())


def merge(counts: Iterable[dict[str, Any]], longest: int = EXAMPLES) -> dict[str, Any]:
    """The sum of counts of the same kind: numbers add up, lists are joined up to ``longest``."""
    total: dict[str, Any] = {}
    for one in counts:
        for key, value in one.items():
            if isinstance(value, dict):
                total[key] = merge((total.get(key, {}), value), longest)
            elif isinstance(value, list):
                total[key] = (total.get(key, []) + value)[:longest]
            elif isinstance(value, int):
                total[key] = total.get(key, 0) + value
            else:
                total[key] = value
    return total
