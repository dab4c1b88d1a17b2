"""A packed row on its way into the model: tensors, with every prompt laid out once.

The answers of a group begin with the same prompt. Its hidden states are the same too, so they are
computed once per row and every answer attends to them (``packed_attention``). What a row
teaches does not change, and the linear layers see fewer tokens: with 8 answers as long as their
prompt, 9 instead of 16 parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from posttrain.packed_attention import Layout
from posttrain.types import Ints, PackedRow


class RowTensors:
    """``inputs`` of ``Policy.forward``; ``targets``: old log-probs, advantages and mask, each [N].

    An empty row becomes one that computes and teaches nothing: under ZeRO-3 each forward pass is a
    collective, in which a rank without samples must take part.
    """

    def __init__(self, row: PackedRow, device: torch.device, *, share_prompts: bool) -> None:
        empty = len(row.token_ids) == 0
        row = _EMPTY if empty else row
        shared = _shared_tokens(row) if share_prompts else np.arange(len(row.token_ids))
        kept = np.unique(shared, return_index=True)[1]
        learnt = np.flatnonzero(row.loss_mask)

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        lengths = row.lengths.tolist()
        several = torch.from_numpy(shared) if len(kept) < len(shared) else None
        self.inputs = (
            tensor(row.token_ids[kept]),
            tensor(row.position_ids[kept]),
            Layout.of(lengths, device, shared=several),
            (tensor(shared[learnt - 1]), tensor(row.token_ids[learnt])),
        )
        self.targets = (
            tensor(row.logprobs[learnt]),
            tensor(row.advantages[learnt]),
            torch.full((len(learnt),), not empty, device=device),
        )


_EMPTY = PackedRow(
    token_ids=np.array([0, 0]),
    position_ids=np.array([0, 1]),
    loss_mask=np.array([False, True]),
    logprobs=np.zeros(2, np.float32),
    advantages=np.zeros(2, np.float32),
    lengths=np.array([2]),
)


def _shared_tokens(row: PackedRow) -> Ints:
    """For each token of the row the number of the packed token that stands for it, [T].

    Numbers count up from 0 in order of first use. Shared are equal beginnings: the tokens before
    the first that the model wrote, compared as a whole.
    """
    shared = np.empty(len(row.token_ids), np.int64)
    prompts: dict[bytes, Ints] = {}
    start = n = 0
    for length in row.lengths.tolist():
        end = start + length
        written = np.flatnonzero(row.loss_mask[start:end])
        middle = start + (int(written[0]) if len(written) else length)
        prompt = row.token_ids[start:middle].tobytes()
        if prompt not in prompts:
            prompts[prompt] = np.arange(n, n + middle - start)
            n += middle - start
        shared[start:middle] = prompts[prompt]
        shared[middle:end] = np.arange(n, n + end - middle)
        n += end - middle
        start = end
    return shared


def rows_of(sequences: Sequence[Ints], budget: int) -> Iterator[list[Ints]]:
    """Consecutive sequences, up to ``budget`` tokens at a time."""
    row: list[Ints] = []
    for ids in sequences:
        if row and sum(map(len, row)) + len(ids) > budget:
            yield row
            row = []
        row.append(np.asarray(ids, np.int64))
    if row:
        yield row


def everything_row(sequences: Sequence[Ints]) -> PackedRow:
    """A row that asks for the log-prob of every token but the first of each sequence."""
    positions = np.concatenate([np.arange(len(ids)) for ids in sequences])
    zeros = np.zeros(len(positions), np.float32)
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    return PackedRow(np.concatenate(sequences), positions, positions > 0, zeros, zeros, lengths)
