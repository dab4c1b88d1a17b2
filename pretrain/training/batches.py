"""Decides what a rank gets of a step's batch, and reads one step ahead of the training.

Every rank reads the whole batch, which is a few memory-mapped reads in a thread, so that all know
how many loss tokens the step has without asking each other; it keeps a contiguous part of the rows
and cuts that into micro-batches of at most ``micro_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pretrain.errors import UsageError
from pretrain.packing import IGNORE


class TrainingStream(Protocol):
    """What is asked of a stream; ``pretrain.data.stream.Stream`` is one."""

    fingerprint: str  # the same for streams that give the same rows
    vocabulary: int

    @property
    def steps(self) -> int: ...
    def tokens_before(self, step: int) -> int: ...
    def plan_of(self, step: int) -> Any: ...  # its phase has rows and length
    def batch(self, step: int) -> Any: ...  # ids, labels, positions [rows, length]


Rows = tuple[Any, Any, Any]  # ids, labels, positions


@dataclass(frozen=True, slots=True)
class LocalStep:
    """One rank's part of a step."""

    micro: tuple[Rows, ...]
    n_tokens: int  # loss tokens of all ranks


class Batches:
    """Parts of the steps of a stream, each read while the step before is computed."""

    def __init__(
        self, stream: TrainingStream, reader: int, readers: int, micro_tokens: int
    ) -> None:
        self._stream, self._reader, self._readers = stream, reader, readers
        self._micro_tokens = micro_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[LocalStep]] | None = None

    def get(self, step: int) -> LocalStep:
        """This rank's part of a step, counted from 0."""
        if self._ahead is not None and self._ahead[0] == step:
            found = self._ahead[1].result()
        else:
            found = self._read(step)
        self._ahead = None
        if step + 1 < self._stream.steps:
            self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        return found

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> LocalStep:
        batch = self._stream.batch(step)
        whole = (batch.ids, batch.labels, batch.positions)
        each = len(batch.ids) // self._readers
        own = slice(self._reader * each, (self._reader + 1) * each)
        n_tokens = int((batch.labels[:, 1:] != IGNORE).sum())
        return LocalStep(tuple(self._cut(tuple(part[own] for part in whole))), max(1, n_tokens))

    def _cut(self, rows: tuple[Any, ...]) -> Iterator[Rows]:
        at_once = max(1, self._micro_tokens // rows[0].shape[1])
        for at in range(0, len(rows[0]), at_once):
            ids, labels, positions = (np.ascontiguousarray(x[at : at + at_once]) for x in rows)
            yield ids, labels, positions


def check_phases(stream: TrainingStream, readers: int, sharing: int, longest: int) -> None:
    """Whether the rows of every phase can be divided, and fit the model. Raises UsageError."""
    step = 0
    while step < stream.steps:
        phase = stream.plan_of(step).phase
        where = f"the phase from step {step}: {phase.rows} rows of {phase.length} tokens"
        if phase.rows % readers:
            raise UsageError(f"{where} can't be divided over {readers} ranks evenly")
        if phase.length % sharing:
            raise UsageError(f"{where} can't be shared by {sharing} ranks: {phase.length} tokens")
        if phase.length > longest:
            raise UsageError(f"{where}, and the model's window is {longest}")
        step += phase.steps
