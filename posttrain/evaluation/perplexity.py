"""Perplexity and bits per byte of a model on held-out text.

A document's tokens, behind one start token (the tokenizer's bos, else its eos), are read in windows
of ``window`` tokens that move on by ``stride``. Every token is scored once, in the first window
that holds it, so all but those of the first window see at least window - stride tokens before them:

    perplexity = exp(-sum log p / tokens)         bits per byte = -sum log2 p / UTF-8 bytes

Perplexities of two models compare only under one tokenizer, bits per byte always do. Documents are
scored apart; a file's numbers are sums over all of its tokens, not means over documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.files import read as read_file
from posttrain.errors import UsageError
from posttrain.model.packed_attention import Layout
from posttrain.model.policy import Policy

_TOKENS = {"cpu": 4096, "cuda": 65_536}  # of a batch: windows are packed up to this


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and what its numbers are kept under."""

    text: str
    labels: tuple[str, ...]  # its file, and its language where the row names one


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids [T] of which the last ``scored`` are scored."""

    ids: list[int]
    scored: int


@dataclass(slots=True)
class Total:
    """Sums over documents."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0  # -sum of log p

    def add(self, text: str, tokens: int, nats: float) -> None:
        self.documents += 1
        self.tokens += tokens
        self.bytes += len(text.encode())
        self.nats += nats

    def numbers(self) -> dict[str, float]:
        """What is reported. A perplexity beyond a float's range is infinite."""
        mean = self.nats / self.tokens
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "perplexity": math.exp(mean) if mean < 700 else math.inf,
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
        }


def read_documents(paths: Sequence[str], column: str = "text") -> list[Document]:
    """A file is one document, and so is each row of a .jsonl or .parquet file (``column``).

    Raises UsageError for a file without text.
    """
    found: list[Document] = []
    for path in paths:
        texts = list(_texts(path, column))
        if not any(text for text, _ in texts):
            raise UsageError(f"{path} holds no text")
        found += [
            Document(text, (path, f"language: {language}") if language else (path,))
            for text, language in texts
            if text
        ]
    return found


def _texts(path: str, column: str) -> Iterator[tuple[str, str]]:
    if not path.removesuffix(".gz").endswith((".jsonl", ".json", ".parquet")):
        try:
            yield Path(path).read_text(encoding="utf-8"), ""
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as text: {error}") from None
        return
    for number, row in enumerate(read_file(path)):
        if not isinstance(row.get(column), str):
            raise UsageError(f"{path}, row {number}: no text under {column!r}; see --column")
        yield row[column], str(row.get("language") or "")


def windows(ids: Sequence[int], start: int, window: int, stride: int) -> list[Window]:
    """The windows of one document; its tokens are all scored, the start token is not."""
    line = [start, *ids]
    end = min(window, len(line))
    found = [Window(line[:end], end - 1)]
    while end < len(line):
        following = min(end + stride, len(line))
        found.append(Window(line[max(0, following - window) : following], following - end))
        end = following
    return found


def measure(
    policy: Policy, tokenizer: Any, documents: Sequence[Document], *, window: int, stride: int
) -> dict[str, dict[str, float]]:
    """Numbers by file and language, and of all of it ("total").

    Raises UsageError for a tokenizer without a start or end token, and for a stride that is not
    from 1 to window - 1.
    """
    if not 1 <= stride < window:
        raise UsageError(f"the stride is from 1 to {window - 1} in a window of {window}: {stride}")
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise UsageError("the tokenizer has neither bos nor eos: nothing precedes the first token")
    # verbose warns of texts beyond the model's window, which are cut into windows below
    encoded = [tokenizer(d.text, add_special_tokens=False, verbose=False) for d in documents]
    ids = [one["input_ids"] for one in encoded]
    pieces = [
        (i, one) for i, line in enumerate(ids) for one in windows(line, start, window, stride)
    ]
    nats = [0.0] * len(documents)
    for batch in _batches(pieces, _TOKENS.get(policy.head.weight.device.type, 4096)):
        for (i, _), value in zip(batch, _score(policy, [one for _, one in batch]), strict=True):
            nats[i] += value
    totals: dict[str, Total] = {}
    for document, line, value in zip(documents, ids, nats, strict=True):
        for label in (*document.labels, "total"):
            totals.setdefault(label, Total()).add(document.text, len(line), value)
    return {label: one.numbers() for label, one in totals.items()}


def _batches(
    pieces: Sequence[tuple[int, Window]], tokens: int
) -> Iterator[list[tuple[int, Window]]]:
    """Windows of like length together, up to so many tokens."""
    batch: list[tuple[int, Window]] = []
    size = 0
    for piece in sorted(pieces, key=lambda one: -len(one[1].ids)):
        if batch and size + len(piece[1].ids) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece[1].ids)
    if batch:
        yield batch


@torch.no_grad()
def _score(policy: Policy, batch: Sequence[Window]) -> list[float]:
    """-sum of log p of each window's scored tokens, in nats."""
    device = policy.head.weight.device
    lengths = [len(one.ids) for one in batch]
    packed = torch.tensor([token for one in batch for token in one.ids])
    ends = torch.tensor(lengths).cumsum(0).tolist()
    scored = torch.cat(
        [torch.arange(end - one.scored, end) for one, end in zip(batch, ends, strict=True)]
    )
    logprobs, *_ = policy(
        packed.to(device),
        torch.cat([torch.arange(n) for n in lengths]).to(device),
        Layout.of(lengths, device),
        ((scored - 1).to(device), packed[scored].to(device)),
        1.0,
    )
    parts = logprobs.double().cpu().split([one.scored for one in batch])
    return [-float(part.sum()) for part in parts]
