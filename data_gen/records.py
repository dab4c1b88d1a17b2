"""What a generator makes: one record type, for SFT, preferences, prompts and plain text alike.

A record is the columns that a trainer reads, how it was judged, and where it comes from:

    SFT          {"messages": [...]} and, with tools, {"tools": [...]}
    preference   {"prompt": [...], "chosen": [...], "rejected": [...]}
    prompt       {"prompt": [...], "answer": ...}: a task for a later stage
    text         {"text": "..."}

It becomes one flat row of the data set: those columns, then ``Provenance`` and the score's fields.
A record that was not kept is the same row with ``dropped``, the reason, set; it is kept aside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rewards import Score

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
KINDS = ("messages", "chosen", "text", "prompt")  # the column that a kind of record is known by


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a record comes from; empty where it does not apply."""

    generator: str  # "rejection", "self_instruct", ...
    source: str = ""  # the task, document or seed it was made from
    model: str = ""
    sample: int = 0  # which of the samples of one prompt
    temperature: float | None = None
    seed: int | None = None
    n_tokens: int = 0  # that the model wrote
    end: str = ""  # why generation ended: stop, length, ...

    def columns(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in _PROVENANCE}


_PROVENANCE = [one.name for one in fields(Provenance)]


@dataclass(frozen=True, slots=True)
class Record:
    """One example. Raises ValueError when its columns are of no kind."""

    columns: Mapping[str, Any]
    provenance: Provenance
    score: Score | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # more columns of the row
    dropped: str = ""  # why it was not kept

    def __post_init__(self) -> None:
        if not any(kind in self.columns for kind in KINDS):
            raise ValueError(f"a record needs one of {KINDS}, got {sorted(self.columns)}")

    @property
    def content_hash(self) -> str:
        """Of what a trainer reads, whatever made it."""
        return content_hash(self.columns)

    def drop(self, reason: str) -> Record:
        """The same record, not kept."""
        return replace(self, dropped=reason)

    def row(self) -> dict[str, Any]:
        """One flat row, of plain JSON values."""
        score = self.score
        judged = {
            "reward": None if score is None else score.value,
            "outcome": None if score is None else str(score.outcome),
            "reward_parts": None if score is None else json.dumps(dict(score.parts)),
        }
        end = {"content_hash": self.content_hash, "dropped": self.dropped}
        return {**self.columns, **self.provenance.columns(), **judged, **self.extra, **end}


def content_hash(value: Any) -> str:
    """32 hexadecimal digits that name a JSON value, whatever the order of its keys."""
    return hashlib.blake2b(_canonical(value).encode(), digest_size=16).hexdigest()


def derived_seed(*parts: Any) -> int:
    """A seed below 2**31 that is a function of what it is for."""
    return int(content_hash(list(parts))[:8], 16) & 0x7FFFFFFF
