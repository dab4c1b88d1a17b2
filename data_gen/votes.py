"""Preference pairs from people's votes: a file of who preferred which, counted to a majority.

Rows are ``prompt``, ``a``, ``b`` and ``vote`` ("a", "b" or "tie"), one for each voter and pair.
Votes on a pair whose answers were shown the other way round count for the same pair. ``agreement``
is the share of the votes, ties included, that the chosen answer got.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record, content_hash
from data_gen.running import Common, Plan, run
from data_gen.writing import json_safe, source_rows, user

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "votes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """What makes a majority. Raises UsageError for what cannot work."""

    min_votes: int = 1  # on a pair
    min_agreement: float = 0.5  # the chosen answer has more than this share

    def __post_init__(self) -> None:
        if type(self.min_votes) is not int or self.min_votes < 1:
            raise UsageError(f"min_votes is a whole number from 1 on, got {self.min_votes!r}")
        if not 0 <= self.min_agreement < 1:
            raise UsageError(f"min_agreement is from 0 to below 1, got {self.min_agreement!r}")


def votes(ballots: Any, out: str | Path, **settings: Any) -> Dataset:
    """Pairs from people's votes; no server is asked.

    ``ballots`` are rows or a file of rows with ``prompt`` (a text or messages), ``a``, ``b`` and
    ``vote``. ``settings`` are those of ``Counting`` and ``Common``. Returns ``prompt``, ``chosen``,
    ``rejected`` with ``n_votes`` and ``agreement``. Raises UsageError for a row that is no vote.
    """
    common, rest = Common.split(settings, Counting)
    counting = Counting(**rest)
    rows = [_checked(row, i) for i, row in enumerate(source_rows(ballots, "prompt"), start=1)]
    job = {
        "generator": GENERATOR,
        "votes": content_hash(rows),
        "min_votes": counting.min_votes,
        "min_agreement": counting.min_agreement,
    }
    return run(Plan(job, _items(rows), _Votes(counting)), None, out, common)


@dataclass(frozen=True, slots=True)
class _Votes:
    """The generator: an item is a pair with all its votes."""

    counting: Counting

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        (prompt, first, second), counts = item.value
        n_votes = sum(counts.values())
        better, worse = (first, second) if counts["a"] >= counts["b"] else (second, first)
        share = max(counts["a"], counts["b"]) / n_votes
        dropped = ""
        if n_votes < self.counting.min_votes:
            dropped = "too few votes"
        elif counts["a"] == counts["b"]:
            dropped = "a tie"
        elif share <= self.counting.min_agreement:
            dropped = "too little agreement"
        columns = {
            "prompt": user(prompt) if isinstance(prompt, str) else prompt,
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
        extra = {"n_votes": n_votes, "agreement": share, "judged_by": "people"}
        made_by = Provenance(GENERATOR, source=content_hash(prompt)[:12])
        return [Record(columns, made_by, extra=extra, dropped=dropped)]


def _items(rows: Sequence[Mapping[str, Any]]) -> Iterator[Item]:
    """The pairs in the order of their first vote, each with its counts."""
    pairs: dict[str, tuple[tuple[Any, str, str], Counter[str]]] = {}
    for row in rows:
        swapped = row["a"] > row["b"]
        first, second = (row["b"], row["a"]) if swapped else (row["a"], row["b"])
        about = (row["prompt"], first, second)
        _, counts = pairs.setdefault(content_hash(about), (about, Counter()))
        vote = row["vote"]
        counts[{"a": "b", "b": "a"}.get(vote, vote) if swapped else vote] += 1
    for key, (about, counts) in pairs.items():
        yield Item((about, counts), content_hash([key, dict(counts)]))


def _checked(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    for name in ("a", "b"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UsageError(
                f"vote {number}: {name} is the text of an answer, got {row.get(name)!r}"
            )
    if row["a"] == row["b"]:
        raise UsageError(f"vote {number}: a and b are the same")
    vote = str(row.get("vote")).strip().lower()
    if vote not in ("a", "b", "tie"):
        raise UsageError(f'vote {number}: vote is "a", "b" or "tie", got {row.get("vote")!r}')
    return {"prompt": json_safe(row["prompt"]), "a": row["a"], "b": row["b"], "vote": vote}
