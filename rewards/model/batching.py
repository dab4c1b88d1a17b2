"""Decides which waiting samples share a forward pass.

Calls from many rollouts, also from several event loops, meet in one thread: it waits ``wait_s``
after the first one, takes all that have come, prepares each (tokens), sorts them by length, and
runs them in batches of at most ``token_budget`` tokens, padding included. The model is never used
by two threads, an event loop never waits for it, and a caller that was cancelled before its batch
costs nothing. A batch that fails is run again in halves, so that one sample that does not fit into
memory does not take the others with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P", bound=Sized)
R = TypeVar("R")

_IDLE_S = 5.0  # then the thread ends, so that a model nobody uses can be freed


@dataclass(slots=True)
class _Job(Generic[T, R]):
    item: T
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[R] = field(init=False)

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    @property
    def wanted(self) -> bool:
        return not self.future.done() and not self.loop.is_closed()

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            """The loop ended while this ran; nobody waits any more."""

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():  # cancelled
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class MicroBatcher(Generic[T, P, R]):
    """``submit`` from coroutines; ``prepare`` and ``run`` are called in one thread.

    ``prepare(item)`` gives something with a length in tokens, ``run(prepared)`` one result for
    each. What they raise reaches the caller.
    """

    def __init__(
        self,
        prepare: Callable[[T], P],
        run: Callable[[list[P]], Sequence[R]],
        *,
        token_budget: int,
        wait_s: float,
    ) -> None:
        self._prepare, self._run = prepare, run
        self._token_budget, self._wait_s = token_budget, wait_s
        self._waiting: list[_Job[T, R]] = []
        self._arrived = threading.Condition()
        self._thread: threading.Thread | None = None

    async def submit(self, item: T) -> R:
        """The result for ``item``. Cancelling takes it out of the queue."""
        job: _Job[T, R] = _Job(item, asyncio.get_running_loop())
        with self._arrived:  # never held longer than it takes to swap a list
            self._waiting.append(job)
            if self._thread is None or not self._thread.is_alive():
                # A daemon: nobody waits for a score at exit.
                self._thread = threading.Thread(target=self._serve, name="scorer", daemon=True)
                self._thread.start()
            self._arrived.notify()
        return await job.future

    def _serve(self) -> None:
        while True:
            with self._arrived:
                if not self._arrived.wait_for(lambda: self._waiting, _IDLE_S):
                    self._thread = None
                    return
            time.sleep(self._wait_s)
            with self._arrived:
                jobs, self._waiting = self._waiting, []
            self._work(jobs)

    def _work(self, jobs: list[_Job[T, R]]) -> None:
        ready: list[tuple[_Job[T, R], P]] = []
        for job in jobs:
            if not job.wanted:
                continue
            try:
                ready.append((job, self._prepare(job.item)))
            except Exception as error:  # noqa: BLE001  boundary: model text
                job.settle(None, error)
        lengths = [len(prepared) for _, prepared in ready]
        for batch in by_length(lengths, self._token_budget):
            self._judge([ready[i] for i in batch if ready[i][0].wanted])

    def _judge(self, batch: list[tuple[_Job[T, R], P]]) -> None:
        if not batch:
            return
        try:
            results = self._run([prepared for _, prepared in batch])
        except Exception as error:  # noqa: BLE001  boundary: a batch may be too much for the device
            if len(batch) == 1:
                batch[0][0].settle(None, error)
                return
            half = len(batch) // 2
            self._judge(batch[:half])
            self._judge(batch[half:])
            return
        for (job, _), result in zip(batch, results, strict=True):
            job.settle(result)


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in batches: longest first, rows x longest row <= the budget, at least one row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if last and (len(last) + 1) * lengths[last[0]] <= token_budget:
            last.append(i)
        else:
            batches.append([i])
    return batches
