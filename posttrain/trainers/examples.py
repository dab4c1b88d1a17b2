"""Conversations -> examples for training, with a report of what became of each row.

Decided here: in which order rows are looked at and dropped. Rows that can't be used, rows that hold
an evaluation item, rows that are too long, then equal rows. Everything is checked before a model is
loaded; each message names the file and the row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.contamination import read_index
from posttrain.errors import UsageError
from posttrain.trainers.conversations import (
    Conversation,
    at_row,
    conversation,
    detect,
    each_answer,
    read_rows,
)
from posttrain.trainers.masks import Rendered, Renderer
from posttrain.trainers.sft_settings import SftSettings

_SHOWN = 5  # rows named in a message about several


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence to train on."""

    token_ids: list[int]  # [T]
    trained: list[int]  # [T] 1 where a token carries loss
    source: str
    row: int  # in its source, from 1

    @property
    def labels(self) -> list[int]:
        """[T] the token where it carries loss, -100 elsewhere."""
        return [t if on else -100 for t, on in zip(self.token_ids, self.trained, strict=True)]


@dataclass(slots=True)
class Examples:
    """Every example, in the order of the data, and what there is to say about them."""

    rows: list[Example] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)  # source -> rows read
    formats: dict[str, list[str]] = field(default_factory=dict)  # source -> forms of its rows
    counts: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)  # evaluation set -> rows
    ends_turns: bool = True

    def report(self) -> dict[str, Any]:
        """JSON-ready: lengths in tokens, and how many rows were kept, dropped or cut."""
        lengths = np.array([len(example.token_ids) for example in self.rows])
        trained = sum(sum(example.trained) for example in self.rows)
        return {
            "rows": dict(self.read),
            "formats": self.formats,
            "examples": len(self.rows),
            "tokens": int(lengths.sum()),
            "trained_tokens": trained,
            "length": {
                **{f"p{q}": int(np.percentile(lengths, q)) for q in (50, 90, 99)},
                "mean": round(float(lengths.mean()), 1),
                "max": int(lengths.max()),
            },
            **{name: self.counts[name] for name in COUNTS},
            "contaminated": dict(self.contaminated),
            "ends_turns": self.ends_turns,
        }

    def digest(self) -> str:
        """Of every token and mask, in order."""
        total = hashlib.sha256()
        for example in self.rows:
            total.update(_key(example) + example.source.encode())
        return total.hexdigest()


# What is counted of rows, and what each number means.
COUNTS = {
    "duplicates": "examples equal to an earlier one",
    "dropped_duplicates": "of them dropped",
    "truncated": "cut at max_length",
    "dropped_too_long": "dropped, longer than max_length",
    "dropped_unusable": "dropped, could not be used (bad_rows)",
    "dropped_contaminated": "dropped, hold text of an evaluation set",
    "dropped_nothing_left": "dropped, cut before the answer began",
    "thoughts_left_out": "answers that the template strips of their thoughts",
}


def make_examples(
    sources: Mapping[str, Any], renderer: Renderer, settings: SftSettings, limit: int
) -> Examples:
    """Read, convert, check and render every row. ``limit`` is the longest example in tokens.

    Raises UsageError that names file and row.
    """
    found = Examples(ends_turns=renderer.ends_turns())
    talks = [
        one for name, source in sources.items() for one in _read(name, source, settings, found)
    ]
    talks = _without_evaluation(talks, settings, found)
    seen: set[bytes] = set()
    for name, row, talk in talks:
        with at_row(name, row):
            rendered = _render(renderer, talk, settings, found)
            example = rendered and _fitted(Example(*rendered, name, row), limit, settings, found)
        if example and not _again(example, seen, settings, found):
            found.rows.append(example)
    if not found.rows:
        raise UsageError(f"no example is left of {', '.join(sources)}: {dict(found.counts)}")
    return found


Talk = tuple[str, int, Conversation]  # source, row, what was said


def _read(name: str, source: Any, settings: SftSettings, found: Examples) -> list[Talk]:
    rows, talks, forms = read_rows(source), [], set()
    found.read[name] = len(rows)
    for number, row in enumerate(rows, 1):
        try:
            with at_row(name, number):
                talk = conversation(row)
        except UsageError:
            if settings.bad_rows == "error":
                raise
            found.counts["dropped_unusable"] += 1
            continue
        forms.add(detect(k for k, v in row.items() if v is not None).value)
        parts = each_answer(talk) if settings.thinking == "split" else [talk]
        talks += [(name, number, part) for part in parts]
    found.formats[name] = sorted(forms)
    return talks


def _without_evaluation(talks: list[Talk], settings: SftSettings, found: Examples) -> list[Talk]:
    if not settings.against:
        return talks
    index = read_index(settings.against)
    texts = ("\n".join(m["content"] for m in talk.messages) for _, _, talk in talks)
    held = {i: match for i, text in enumerate(texts) if (match := index.find(text))}
    found.contaminated.update(match.item.benchmark for match in held.values())
    if held and settings.contaminated == "error":
        first, match = next(iter(held.items()))
        rows = ", ".join(str(talks[i][1]) for i in list(held)[:_SHOWN])
        more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
        raise UsageError(
            f"{talks[first][0]}, row {talks[first][1]} {match.reason}: {match.item.text!r:.120}. "
            f"Rows like it: {rows}{more}. contaminated='drop' leaves them out"
        )
    if settings.contaminated != "drop":
        return talks
    found.counts["dropped_contaminated"] += len(held)
    return [talk for i, talk in enumerate(talks) if i not in held]


def _render(
    renderer: Renderer, talk: Conversation, settings: SftSettings, found: Examples
) -> tuple[list[int], list[int]] | None:
    try:
        rendered: Rendered = renderer(talk)
        if not any(rendered.trained):
            raise UsageError("none of its tokens is the assistant's: there is nothing to learn")
    except UsageError:
        if settings.bad_rows == "error":
            raise
        found.counts["dropped_unusable"] += 1
        return None
    found.counts["thoughts_left_out"] += rendered.unthinking
    return rendered.token_ids, rendered.trained


def _fitted(example: Example, limit: int, settings: SftSettings, found: Examples) -> Example | None:
    length = len(example.token_ids)
    if length <= limit:
        return example
    if settings.too_long == "error":
        raise UsageError(
            f"{length} tokens, more than max_length or the model's window ({limit}): raise "
            "max_length, or choose too_long='drop' or 'truncate'"
        )
    if settings.too_long == "drop":
        found.counts["dropped_too_long"] += 1
        return None
    found.counts["truncated"] += 1
    cut = Example(example.token_ids[:limit], example.trained[:limit], example.source, example.row)
    if any(cut.trained[1:]):  # the first token has nothing to be predicted from
        return cut
    found.counts["dropped_nothing_left"] += 1
    return None


def _again(example: Example, seen: set[bytes], settings: SftSettings, found: Examples) -> bool:
    """Whether to leave it out because it was there before."""
    key = hashlib.sha256(_key(example)).digest()
    if key not in seen:
        seen.add(key)
        return False
    found.counts["duplicates"] += 1
    if settings.duplicates == "keep":
        return False
    found.counts["dropped_duplicates"] += 1
    return True


def _key(example: Example) -> bytes:
    return array("q", example.token_ids).tobytes() + bytes(example.trained)
