"""Pairs and judged answers -> token ids, cut, counted and refused by the rules of the settings.

The tokens are TRL's: the prompt is the chat template's rendering with its generation prompt, an
answer is what the rendering of prompt and answer together has beyond their common beginning.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from posttrain.errors import UsageError
from posttrain.trainers.pairs import Judged, Message, Pair

Row = dict[str, Any]
T = TypeVar("T")
TooLong = Literal["error", "drop", "truncate"]


@dataclass(slots=True)
class Tokenised:
    """Rows for a trainer, and what happened to the others."""

    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # dropped or cut, by reason

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens in the same order."""
        return fingerprint(self.rows)


def fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Cutter:
    """What to do with rows over ``limit`` tokens, and how rows that became unusable are told."""

    name: str  # of the data
    limit: int
    too_long: TooLong
    drop_bad: bool

    def pairs(self, tokenizer: Any, pairs: Iterable[Pair]) -> Tokenised:
        """Rows {prompt_ids, chosen_ids, rejected_ids}; ties have no better answer and are left out.

        Raises UsageError naming the first row that is too long, or whose answers are the same once
        they are tokens.
        """
        found = Tokenised()
        for pair in pairs:
            if pair.tie:
                found.counts["tie"] += 1
                continue
            prompt, answers = answer_ids(tokenizer, pair.prompt, [pair.chosen, pair.rejected])
            kept = self._fitted(pair.row, prompt, answers, found.counts)
            if kept is None:
                continue
            if kept[0] == kept[1]:
                self._refuse(pair.row, "both answers are the same tokens", found.counts)
                continue
            found.rows.append(
                {"prompt_ids": prompt, "chosen_ids": kept[0], "rejected_ids": kept[1]}
            )
        return found

    def judged(self, tokenizer: Any, answers: Iterable[Judged]) -> Tokenised:
        """Rows {prompt_ids, completion_ids, label}. Raises as ``pairs``."""
        found = Tokenised()
        for one in answers:
            prompt, ids = answer_ids(tokenizer, one.prompt, [one.answer])
            kept = self._fitted(one.row, prompt, ids, found.counts)
            if kept is not None:
                row = {"prompt_ids": prompt, "completion_ids": kept[0], "label": one.good}
                found.rows.append(row)
        return found

    def _fitted(
        self, row: int, prompt: list[int], answers: list[list[int]], counts: Counter[str]
    ) -> list[list[int]] | None:
        """The answers as they are or cut at their end; None where the row is left out."""
        longest = len(prompt) + max(map(len, answers))
        if longest <= self.limit:
            return answers
        if self.too_long == "error":
            raise UsageError(
                f"{self.name}, row {row}: {longest} tokens are over max_length = {self.limit}: "
                'raise it, or set too_long = "drop" or "truncate"'
            )
        room = self.limit - len(prompt)
        if self.too_long == "drop" or room <= 0:
            counts["too long"] += 1
            return None
        counts["truncated"] += 1
        return [ids[:room] for ids in answers]

    def _refuse(self, row: int, problem: str, counts: Counter[str]) -> None:
        if not self.drop_bad and self.too_long != "truncate":
            raise UsageError(f"{self.name}, row {row}: {problem}")
        counts["equal answers"] += 1


def some(rows: Sequence[Any], name: str, counts: Mapping[str, int]) -> None:
    """Raise UsageError when nothing is left to train on."""
    if not rows:
        raise UsageError(f"{name}: no row is left to train on (left out: {dict(counts)})")


def answer_ids(
    tokenizer: Any, prompt: Sequence[Message], answers: Sequence[Message]
) -> tuple[list[int], list[list[int]]]:
    """Ids of the prompt and of each answer to it, as the chat template writes them."""

    def ids(messages: Sequence[Message], generate: bool) -> list[int]:
        return list(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=generate,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
        )

    asked = ids(prompt, True)
    whole = [ids([*prompt, answer], False) for answer in answers]
    start = min(_common(asked, one) for one in whole)
    return asked[:start], [one[start:] for one in whole]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def with_mismatched(rows: Sequence[Row], batch: int, seed: int) -> list[Row]:
    """Shuffled rows, each with the answer to another prompt of its batch, for KTO's KL estimate.

    The trainer takes them in this order: the estimate is meant for the batch (arXiv:2402.01306).
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    made = []
    for start in range(0, len(shuffled), batch):
        members = shuffled[start : start + batch]
        others = [members[-1], *members[:-1]]
        made += [
            {**row, "KL_completion_ids": other["completion_ids"]}
            for row, other in zip(members, others, strict=True)
        ]
    return made


def split(
    items: Sequence[T], share: float, prompt: Callable[[T], Any], seed: int
) -> tuple[list[T], list[T]]:
    """(train, held out): all rows of a prompt on one side, which one decided by it alone.

    ``prompt``: of an item, as JSON.
    """
    sides: tuple[list[T], list[T]] = ([], [])
    for item in items:
        key = json.dumps([seed, prompt(item)])
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") / 2**64 < share].append(item)
    return sides
