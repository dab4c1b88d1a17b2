"""Preferences -> rows of tokens for a reward model, read as ``rewards.model`` will read answers.

The score is read at the last token that is no padding, so the pad token must be one that ends no
conversation; where the tokenizer's does, another of its special tokens is taken, and saved as the
model's. Pairs of one prompt are never on both sides of what is held out.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from posttrain.config import Positive
from posttrain.errors import UsageError
from posttrain.trainers.conversations import name_of, read_rows
from posttrain.trainers.pair_training import PairSettings
from posttrain.trainers.pairs import Pair, read_pairs
from posttrain.trainers.preference_data import Row, some, split
from rewards.model.failures import Unjudged
from rewards.model.reading import Reader, ReadingSettings


class RewardModelSettings(PairSettings):
    """Loss and pace. The rate suits full training of a model of a few million."""

    learning_rate: Positive = Field(default=1e-4, description="peak rate; falls along a cosine")
    centre: Annotated[float, Field(ge=0.0)] = Field(
        default=0.01, description="weight of (score + score)^2: keeps scores around 0"
    )
    tie_threshold: Positive = Field(
        default=0.5, description="eta of Rao-Kupper, in the score's units; only where data has ties"
    )


class RewardRows(NamedTuple):
    """Rows {row, chosen_ids, rejected_ids, margin, tie}."""

    train: list[Row]
    held_out: list[Row]
    counts: Counter[str]  # of what was dropped or cut
    eta: float  # of ties; 0 where the data has none


def reward_rows(
    tokenizer: Any, data: Any, settings: RewardModelSettings, limit: int, seed: int
) -> RewardRows:
    """Everything that can be refused is refused here; settles the tokenizer's pad token."""
    name = name_of(data)
    pairs, counts = read_pairs(read_rows(data), name, drop_bad=settings.bad_rows == "drop")
    reader = Reader(
        tokenizer,
        limit,
        ReadingSettings(max_tokens=limit, too_long="truncate_left"),
        "the model's tokenizer",
    )
    settle_pad_token(tokenizer, reader.probe_ids[-1])
    eta = settings.tie_threshold if any(pair.tie for pair in pairs) else 0.0
    read = PairReader(name, reader, settings, eta, counts)
    rows = [(pair, row) for pair in pairs if (row := read(pair)) is not None]
    sides = split(rows, settings.held_out_share, lambda one: one[0].prompt, seed)
    train, held_out = ([row for _, row in side] for side in sides)
    some(train, name, counts)
    return RewardRows(train, held_out, counts, eta)


class PairReader:
    """A pair as a row of tokens, or None where it is left out and counted."""

    def __init__(
        self, name: str, reader: Reader, settings: RewardModelSettings, eta: float,
        counts: Counter[str],
    ) -> None:  # fmt: skip
        self._name, self._reader, self._settings = name, reader, settings
        self._eta, self._counts = eta, counts

    def __call__(self, pair: Pair) -> Row | None:
        try:
            both = [self._reader.read([*pair.prompt, m]) for m in (pair.chosen, pair.rejected)]
        except Unjudged as problem:
            self._bad(pair, "unreadable", str(problem))
            return None
        if any(reading.cut for reading in both):
            if self._settings.too_long == "error":
                longest = max(len(reading) + reading.cut for reading in both)
                raise UsageError(
                    f"{self._name}, row {pair.row}: {longest} tokens are over max_length = "
                    f'{self._reader.window}: raise it, or set too_long = "drop" or "truncate"'
                )
            cut = self._settings.too_long == "truncate"
            self._counts["truncated" if cut else "too long"] += 1
            if not cut:
                return None
        chosen, rejected = (reading.ids for reading in both)
        if chosen == rejected:
            self._bad(pair, "equal answers", "both answers are the same tokens")
            return None
        margin = 0.0 if pair.tie else pair.margin + self._eta
        return {
            "row": pair.row, "chosen_ids": chosen, "rejected_ids": rejected,
            "margin": margin, "tie": pair.tie,
        }  # fmt: skip

    def _bad(self, pair: Pair, kind: str, text: str) -> None:
        if self._settings.bad_rows == "error":
            raise UsageError(f"{self._name}, row {pair.row}: {text}")
        self._counts[kind] += 1


def settle_pad_token(tokenizer: Any, last: int) -> None:
    """Make sure that ``last``, which ends every conversation, is not taken for padding.

    Raises UsageError when the tokenizer has no special token to spare.
    """
    taken = {last, tokenizer.eos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != last:
        return
    special = sorted(
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and number not in taken
    )
    if not special:
        raise UsageError(
            "the tokenizer has no pad token apart from the one that ends a conversation, and no "
            "other special token to use: add one"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(special[0])
