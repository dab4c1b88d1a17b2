"""Decides what is counted of a chain of steps: per step, reason and language, with examples.

A file of counts is what the funnel page reads; stages over files write the same form:
``{"stage", "in", "kept", "characters_in", "characters_kept", "dropped": {reason: number},
"by_language": {language: {"in", "kept", ...}}, "examples": {reason: [excerpt, ...]}}``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES, EXCERPT = 3, 300
UNKNOWN = "unknown"  # language of a document that no step has judged


@dataclass
class StepCounts:
    """Of one step."""

    stage: str
    documents: Counter[str] = field(default_factory=Counter)  # in, kept, changed, characters_...
    dropped: Counter[str] = field(default_factory=Counter)
    by_language: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, before: str, after: str, language: str, reason: str | None) -> None:
        """One document: its text before and after the step, and why it was dropped."""
        numbers = {"in": 1, "characters_in": len(before)}
        if reason is None:
            numbers |= {"kept": 1, "characters_kept": len(after), "changed": before is not after}
        else:
            self.dropped[reason] += 1
            examples = self.examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append(before[:EXCERPT])
        for counter in (self.documents, self.by_language.setdefault(language, Counter())):
            for key, number in numbers.items():
                counter[key] += number

    def as_json(self) -> dict[str, Any]:
        keys = ("in", "kept", "changed", "characters_in", "characters_kept")
        return {
            "stage": self.stage,
            **{key: self.documents[key] for key in keys},
            "dropped": dict(self.dropped.most_common()),
            "by_language": {name: dict(c) for name, c in sorted(self.by_language.items())},
            "examples": self.examples,
        }


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
