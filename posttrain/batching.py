"""Rollouts -> Samples -> one Batch, and the file a Batch travels in.

Decides which tokens become one training row. ``samples_of`` merges the turns of an episode while
each prompt repeats what came before, and forks where an environment rewrote history. ``pack`` lays
samples end to end up to a token budget. Both depend on the order of their input alone, never on
timing, so the same rollouts always make the same batch.

Packing: samples go to ranks first, longest first and each to the rank with the least work, so that
no rank waits for another. A sample of n tokens costs n + n^2 / a, where a is the length at which
attention takes as long as the linear layers (``attention_at``). Best-fit decreasing then tells how
many rows the fullest rank needs. Every rank gets that many, and deals its samples over them anew,
each to the cheapest row with room, so that rows are of nearly equal work too.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.types import Batch, Completion, PackedRow, Rollout, Sample

_ARRAYS = ("token_ids", "position_ids", "loss_mask", "logprobs", "advantages", "lengths")
_OPTIONAL = ("values", "returns", "reference")  # what a batch has of them, all of its rows have


def samples_of(rollout: Rollout, advantage: float | Sequence[float]) -> list[Sample]:
    """The training rows of one episode; usually one, one more per rewritten history.

    ``advantage`` is that of every token the model wrote, or one for each turn.
    A turn in which the model wrote nothing adds nothing to learn; an episode of such turns gives
    an empty list. Raises ValueError when a completion has no prompt before it.
    """
    n_turns = len(rollout.turns)
    per_turn = [advantage] * n_turns if isinstance(advantage, int | float) else advantage
    samples, draft = [], _Draft(rollout.rollout_id)
    for turn, credit in zip(rollout.turns, per_turn, strict=True):
        if not draft.is_prefix_of(turn.prompt_ids):
            samples.append(draft.finish())
            draft = _Draft(rollout.rollout_id)
        draft.read(turn.prompt_ids[draft.n :])
        draft.write(turn.completion, credit)
    samples.append(draft.finish())
    return [sample for sample in samples if sample.loss_mask.any()]


class _Draft:
    """A sample while its turns are being appended."""

    def __init__(self, rollout_id: str) -> None:
        self._rollout_id = rollout_id
        self._ids = np.zeros(0, np.int64)
        self._mask = np.zeros(0, np.bool_)
        self._logprobs = np.zeros(0, np.float32)
        self._advantages = np.zeros(0, np.float32)
        self._versions = np.zeros(0, np.int64)

    @property
    def n(self) -> int:
        return len(self._ids)

    def is_prefix_of(self, ids: np.ndarray) -> bool:
        return self.n <= len(ids) and np.array_equal(self._ids, ids[: self.n])

    def read(self, ids: np.ndarray) -> None:
        """Append tokens that the model saw and did not write."""
        zeros = np.zeros(len(ids))
        self._append(ids, False, zeros, zeros, 0.0)

    def write(self, completion: Completion, advantage: float) -> None:
        """Append tokens that the model wrote."""
        versions = completion.weight_versions
        self._append(completion.token_ids, True, completion.logprobs, versions, advantage)

    def _append(
        self,
        ids: np.ndarray,
        wrote: bool,
        logprobs: np.ndarray,
        versions: np.ndarray,
        credit: float,
    ) -> None:
        n = len(ids)
        self._ids = np.concatenate([self._ids, np.asarray(ids, np.int64)])
        self._mask = np.concatenate([self._mask, np.full(n, wrote)])
        self._logprobs = np.concatenate([self._logprobs, np.asarray(logprobs, np.float32)])
        self._advantages = np.concatenate([self._advantages, np.full(n, credit, np.float32)])
        self._versions = np.concatenate([self._versions, np.asarray(versions, np.int64)])

    def finish(self) -> Sample:
        return Sample(
            token_ids=self._ids,
            loss_mask=self._mask,
            logprobs=self._logprobs,
            advantages=self._advantages,
            weight_versions=self._versions,
            rollout_id=self._rollout_id,
        )


def pack(
    samples: Sequence[Sample],
    tokens_per_row: int,
    ranks: int,
    step: int,
    denominator: float | None = None,
    attention_at: float = math.inf,
) -> Batch:
    """Lay samples into rows of at most ``tokens_per_row`` tokens, the same number for each rank.

    ``denominator`` is what the loss is divided by; None: the number of tokens that carry one.
    ``attention_at``: see ``attention_at`` below; infinite: attention costs nothing.
    A sample longer than the budget gets a row of its own: it cannot be cut, and dropping it would
    bias against long answers. Raises ValueError for an empty batch, or one with nothing to learn.
    """
    if ranks < 1 or tokens_per_row < 1:
        raise ValueError(
            f"pack: ranks {ranks} and tokens_per_row {tokens_per_row} must be positive"
        )
    n_loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    if n_loss_tokens == 0:
        raise ValueError(f"pack: step {step} has {len(samples)} samples and no token to learn from")
    lengths = [len(sample) for sample in samples]
    extra = [name for name in _OPTIONAL if getattr(samples[0], name) is not None]
    costs = [length + length**2 / attention_at for length in lengths]
    order = sorted(range(len(samples)), key=lambda i: (-lengths[i], i))
    mine = _to_ranks(order, costs, ranks)
    n_rows = max(len(_best_fit(own, lengths, tokens_per_row)) for own in mine)
    members = tuple(
        tuple(tuple(sorted(row)) for row in _to_rows(own, lengths, costs, tokens_per_row, n_rows))
        for own in mine
    )
    return Batch(
        step=step,
        rows=tuple(
            tuple(_row([samples[i] for i in row], extra) for row in rank) for rank in members
        ),
        members=members,
        denominator=n_loss_tokens if denominator is None else denominator,
        n_tokens=n_loss_tokens,
    )


def attention_at(model: str) -> float:
    """Tokens of a sequence at which its causal attention takes as long as its linear layers.

    Per layer a token costs 2 (2 H q + 2 H k + 3 H I) operations in linear layers, and a sequence
    of n tokens 2 q n^2 in attention: equal at n = (2 H q + 2 H k + 3 H I) / q. H hidden, I
    intermediate of the experts used, q and k the widths of queries and keys.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model).get_text_config()
    h, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or h // heads
    q = heads * width
    k = (getattr(config, "num_key_value_heads", None) or heads) * width
    used = getattr(config, "num_experts_per_tok", 0) or 0
    inner = getattr(config, "moe_intermediate_size", 0) * used or config.intermediate_size
    return float(h * (2 * q + 2 * k + 3 * inner) / q)


def _to_ranks(order: Sequence[int], costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Each sample goes to the rank with the least work so far."""
    mine: list[list[int]] = [[] for _ in range(ranks)]
    work = [(0.0, rank) for rank in range(ranks)]
    for i in order:
        cost, rank = heapq.heappop(work)
        mine[rank].append(i)
        heapq.heappush(work, (cost + costs[i], rank))
    return mine


def _to_rows(
    order: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    budget: int,
    n_rows: int,
) -> list[list[int]]:
    """Each sample goes to the cheapest row with room for it; where that fails, as best they fit."""
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    tokens, work = [0] * n_rows, [0.0] * n_rows
    for i in order:
        free = [r for r in range(n_rows) if not rows[r] or tokens[r] + lengths[i] <= budget]
        if not free:
            tight = _best_fit(order, lengths, budget)
            return tight + [[] for _ in range(n_rows - len(tight))]
        row = min(free, key=lambda r: (work[r], r))
        rows[row].append(i)
        tokens[row] += lengths[i]
        work[row] += costs[i]
    return rows


def _best_fit(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Each sample goes to the fullest row that still holds it."""
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for i in order:
        at = bisect_left(space, (lengths[i], -1))
        if at == len(space):
            free, row = budget, len(rows)
            rows.append([])
        else:
            free, row = space.pop(at)
        rows[row].append(i)
        insort(space, (free - lengths[i], row))
    return rows


def _row(samples: Sequence[Sample], extra: Sequence[str]) -> PackedRow:
    def joined(name: str, dtype: type) -> np.ndarray:
        parts = [getattr(sample, name) for sample in samples]
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)

    lengths = np.array([len(sample) for sample in samples], np.int64)
    positions = [np.arange(length) for length in lengths]
    return PackedRow(
        token_ids=joined("token_ids", np.int64),
        position_ids=np.concatenate([np.zeros(0, np.int64), *positions]),
        loss_mask=joined("loss_mask", np.bool_),
        logprobs=joined("logprobs", np.float32),
        advantages=joined("advantages", np.float32),
        lengths=lengths,
        **{name: joined(name, np.float32) for name in extra},
    )


def save_batch(batch: Batch, path: Path) -> None:
    """Write one safetensors file, bit for bit what ``load_batch`` gives back; atomic."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for rank, rows in enumerate(batch.rows):
        for i, row in enumerate(rows):
            names = (*_ARRAYS, *(name for name in _OPTIONAL if getattr(row, name) is not None))
            tensors |= {f"{rank}/{i}/{name}": getattr(row, name) for name in names}
    head = {
        "step": batch.step,
        "rows": [len(rows) for rows in batch.rows],
        "members": batch.members,
        "denominator": batch.denominator,
        "n_tokens": batch.n_tokens,
        "train_policy": batch.train_policy,
    }
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"batch": json.dumps(head)})
    os.replace(partial, path)


def load_batch(path: Path, only_rank: int | None = None) -> Batch:
    """Read a batch; with ``only_rank`` the rows of the other ranks stay unread and empty."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        head = json.loads(file.metadata()["batch"])
        there = set(file.keys())

        def row(rank: int, i: int) -> PackedRow:
            paths = {name: f"{rank}/{i}/{name}" for name in _ARRAYS + _OPTIONAL}
            found = {name: file.get_tensor(path) for name, path in paths.items() if path in there}
            return PackedRow(**found)

        rows = tuple(
            tuple(row(rank, i) for i in range(n) if only_rank in (None, rank))
            for rank, n in enumerate(head["rows"])
        )
    members = tuple(tuple(tuple(row) for row in rank) for rank in head["members"])
    shares = head["denominator"], head["n_tokens"], head["train_policy"]
    return Batch(head["step"], rows, members, *shares)
