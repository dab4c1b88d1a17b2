"""Decides how documents of many lengths fill rows of one length.

A row holds whole documents one after another, each followed by an end token; positions restart at
zero in every document, which is what tells transformers that they must not attend to each other.
What is left of a row is padding: a document of its own, without a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the label transformers leaves out of the loss
_OPEN_ROWS = 16  # rows that wait for a document that fits; more of them waste less padding


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed training data."""

    tokens: NDArray[np.int64]  # rows x row_tokens
    labels: NDArray[np.int64]  # rows x row_tokens; the tokens, or IGNORE
    positions: NDArray[np.int64]  # rows x row_tokens; restart at 0 in every document

    @property
    def token_count(self) -> int:
        """Tokens that are text, not padding."""
        return int((self.labels != IGNORE).sum())


def pack(documents: Iterable[Sequence[int]], row_tokens: int, end: int, pad: int) -> Rows:
    """Fill rows in the documents' order, first fit. A document longer than a row is cut."""
    rows = list(_filled(_pieces(documents, row_tokens, end), row_tokens))
    shape = (len(rows), row_tokens)
    tokens = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    positions = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        at = 0
        for piece in row:
            here = slice(at, at + len(piece))
            tokens[index, here] = piece
            labels[index, here] = piece
            # The label shift is inside the model: a document's first token would be predicted
            # from the last one of its neighbour.
            labels[index, at] = IGNORE
            positions[index, here] = np.arange(len(piece))
            at += len(piece)
        positions[index, at:] = np.arange(row_tokens - at)
    return Rows(tokens, labels, positions)


def _pieces(
    documents: Iterable[Sequence[int]], row_tokens: int, end: int
) -> Iterator[Sequence[int]]:
    for document in documents:
        ended = [*document, end]
        for start in range(0, len(ended), row_tokens):
            yield ended[start : start + row_tokens]


def _filled(pieces: Iterable[Sequence[int]], row_tokens: int) -> Iterator[list[Sequence[int]]]:
    waiting: list[tuple[int, list[Sequence[int]]]] = []  # tokens left, pieces
    for piece in pieces:
        fits = next((i for i, (left, _) in enumerate(waiting) if left >= len(piece)), None)
        if fits is not None:
            left, row = waiting[fits]
            waiting[fits] = (left - len(piece), [*row, piece])
            continue
        if len(waiting) == _OPEN_ROWS:
            fullest = min(range(_OPEN_ROWS), key=lambda i: waiting[i][0])
            yield waiting.pop(fullest)[1]
        waiting.append((row_tokens - len(piece), [piece]))
    yield from (row for _, row in waiting)
