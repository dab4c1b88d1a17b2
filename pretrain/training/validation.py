"""Decides how good a model is on held-out documents: loss per token, and bits per byte.

Bits per byte can be compared between tokenizers, and with a compressor:

    (sum of -log2 p(token) over all tokens of the documents) / (bytes of their text in UTF-8)

A document is read alone, in windows of the training's length, each of which begins with the last
token of the one before, so every token is predicted once. Nothing stands before a document's first
token: it is charged log2(vocabulary) bits, as if the model knew nothing. The end token is paid for,
too, and has no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.packing import IGNORE
from pretrain.training.engine import Engine
from pretrain.training.network import MicroBatch

Ints = NDArray[np.int64]
_ROUND = 64  # lengths of rows are multiples: shapes come again, and ranks that share rows divide it


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Documents of one language and domain."""

    documents: Sequence[Ints]  # with their end tokens
    n_bytes: int  # of their text

    @classmethod
    def read(cls, source: Any, tokenizer: Any, most_tokens: int) -> HeldOut:
        """The first documents of a ``TokenSource``, up to ``most_tokens`` but at least one."""
        documents: list[Ints] = []
        n_tokens = n_bytes = 0
        for number in range(source.documents):
            ids = source.document(number)
            if documents and n_tokens + len(ids) > most_tokens:
                break
            documents.append(ids)
            n_tokens += len(ids)
            text = tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
            n_bytes += len(text.encode())
        return cls(documents, n_bytes)


class Validation:
    """Held-out documents by name, cut into rows once."""

    def __init__(
        self, held_out: Mapping[str, HeldOut], *, length: int, micro_tokens: int, vocabulary: int
    ) -> None:
        self._held_out, self._vocabulary = held_out, vocabulary
        self._rows = {
            name: list(_batches(one.documents, length, micro_tokens))
            for name, one in held_out.items()
        }

    def measure(self, engine: Engine) -> dict[str, dict[str, float]]:
        """{name: {"loss" per predicted token in nats, "bits_per_byte"}}, and "all" over all."""
        found: dict[str, dict[str, float]] = {}
        totals = [0.0, 0.0, 0.0, 0.0]  # nats, tokens, bits of first tokens, bytes
        for name, one in self._held_out.items():
            nats = engine.nll(self._part(self._rows[name], engine))
            tokens = sum(len(ids) - 1 for ids in one.documents)
            first = len(one.documents) * math.log2(self._vocabulary)
            each = (nats, tokens, first, one.n_bytes)
            found[name] = _scores(each)
            totals = [total + x for total, x in zip(totals, each, strict=True)]
        if len(found) > 1:
            found["all"] = _scores(totals)
        return found

    def _part(self, batches: list[tuple[Ints, Ints]], engine: Engine) -> list[MicroBatch]:
        """Every n-th batch; a rank without one takes an empty one, as all must make each call."""
        place = engine.place
        own = batches[place.reader :: place.readers]
        ids, targets = batches[0]
        empty = (ids[:1], np.full_like(targets[:1], IGNORE))
        own += [empty] * (-(-len(batches) // place.readers) - len(own))
        made = []
        for ids, targets in own:
            positions = torch.arange(ids.shape[1]).expand(ids.shape)
            tensors = (torch.from_numpy(ids), torch.from_numpy(targets), positions)
            x, y, at = (tensor.to(engine.device) for tensor in tensors)
            made.append(MicroBatch(x, y, at, None))
        return made


def _scores(sums: Sequence[float]) -> dict[str, float]:
    nats, tokens, first, n_bytes = sums
    bits = nats / math.log(2) + first
    return {"loss": nats / max(1.0, tokens), "bits_per_byte": bits / max(1.0, n_bytes)}


def _batches(
    documents: Sequence[Ints], length: int, micro_tokens: int
) -> Iterator[tuple[Ints, Ints]]:
    """(ids, targets) [rows, length]; rows of alike length together, so little is padding."""
    windows = [
        ids[at : at + length + 1] for ids in documents for at in range(0, len(ids) - 1, length)
    ]
    windows.sort(key=len, reverse=True)
    while windows:
        longest = -(-(len(windows[0]) - 1) // _ROUND) * _ROUND
        rows = max(1, micro_tokens // longest)
        taken, windows = windows[:rows], windows[rows:]
        ids = np.zeros((len(taken), longest), np.int64)
        targets = np.full_like(ids, IGNORE)
        for i, window in enumerate(taken):
            ids[i, : len(window) - 1] = window[:-1]
            targets[i, : len(window) - 1] = window[1:]
        yield ids, targets
