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

from posttrain.model.packed_attention import Layout, repeated_size
from posttrain.token_tensors import TokenTensors
from posttrain.types import Ints, PackedRow


class RowTensors:
    """``inputs`` of ``Policy.forward``, and of its N targets what a loss looks at, each [N].

    ``sequence`` numbers the sample of the row that a target belongs to.

    Tokens and targets are filled up to a repeated size, with sequences of token 0 that nobody
    attends to and targets outside the mask, so that every row of a run has one of a few shapes:
    with ever new ones a process grows (docs/log.md). ``n_targets`` counts the real ones, which
    come first. A row without samples becomes one of filling alone: under ZeRO-3 each forward pass
    is a collective, in which a rank without samples must take part. ``multiple`` divides the
    number of tokens.
    """

    def __init__(
        self, row: PackedRow, device: torch.device, *, share_prompts: bool, multiple: int = 1
    ) -> None:
        shared = _shared_tokens(row) if share_prompts else np.arange(len(row.token_ids))
        kept = np.unique(shared, return_index=True)[1]
        learnt = np.flatnonzero(row.loss_mask)
        self.n_targets = len(learnt)
        n_tokens = -(-max(_SMALLEST, repeated_size(len(kept))) // multiple) * multiple
        unused = n_tokens - len(kept)
        n_masked = max(_SMALLEST, repeated_size(len(learnt))) - len(learnt)
        fill_lengths = _cut(unused, max([_SMALLEST, *row.lengths.tolist()]))
        fill_positions = [np.arange(length) for length in fill_lengths]
        several = len(kept) < len(shared)
        shared = np.append(shared, np.arange(len(kept), len(kept) + unused))

        def tensor(array: np.ndarray, fill: int = 0) -> torch.Tensor:
            return torch.from_numpy(np.pad(array, (0, fill))).to(device)

        lengths = [*row.lengths.tolist(), *fill_lengths]
        self.inputs = (
            tensor(row.token_ids[kept], unused),
            tensor(np.concatenate([row.position_ids[kept], *fill_positions])),
            Layout.of(
                lengths,
                device,
                shared=torch.from_numpy(shared) if several else None,
                filling=len(fill_lengths),
            ),
            (tensor(shared[learnt - 1], n_masked), tensor(row.token_ids[learnt], n_masked)),
        )
        self.old_logprobs = tensor(row.logprobs[learnt], n_masked)
        self.advantages = tensor(row.advantages[learnt], n_masked)
        self.mask = tensor(np.ones(len(learnt), np.bool_), n_masked)
        self.n_sequences = max(1, len(row.lengths))
        sequence = np.repeat(np.arange(len(row.lengths)), row.lengths)
        self.sequence = tensor(sequence[learnt], n_masked)
        self._n_tokens = int(row.lengths.sum())
        self.values = None if row.values is None else tensor(row.values[learnt], n_masked)
        self.returns = None if row.returns is None else tensor(row.returns[learnt], n_masked)
        self.reference = None if row.reference is None else tensor(row.reference[learnt], n_masked)

    def tokens(
        self, logprobs: torch.Tensor, entropy: torch.Tensor, reference: torch.Tensor | None
    ) -> TokenTensors:
        """What a loss looks at, with what policy and reference say of the targets."""
        return TokenTensors(
            logprobs,
            self.old_logprobs,
            self.advantages,
            self.mask,
            self.sequence,
            self.n_sequences,
            entropy=entropy,
            ref_logprobs=reference,
        )

    def counts(self) -> dict[str, int]:
        """For ``Totals``: tokens with a loss, and tokens in all, shared ones counted each time."""
        return {"trained_tokens": self.n_targets, "learner_tokens": self._n_tokens}


_SMALLEST = 16  # tokens and targets of a row, at least


def _cut(total: int, longest: int) -> list[int]:
    """``total`` tokens as sequences of at most ``longest``."""
    whole, rest = divmod(total, longest)
    return [longest] * whole + [rest] * (rest > 0)


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
