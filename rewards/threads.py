"""Runs plain functions beside an event loop, so that they hold up neither it nor the program's end.

At most a pool's ``threads`` run at once per event loop, so that slow environments hold up no
reward: ``JUDGES`` is small, since a reward computes; ``WORLDS`` is large, since an environment
mostly waits. The clock of a deadline starts when the
function does, not while it waits for a thread. A Python thread cannot be killed: one whose caller
has stopped waiting runs on, is counted by ``hung_threads()``, and gives its place to another. With
``MAX_HUNG_THREADS`` of them alive nothing more is run, since the machine is no longer ours. Threads
are daemons (``concurrent.futures`` would wait for a hung one at exit) and are used again.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

MAX_HUNG_THREADS = 64


@dataclass(frozen=True, slots=True)
class Pool:
    """One use of threads, and how many of them it may hold at once."""

    name: str
    threads: int


JUDGES = Pool("rewards", 16)
WORLDS = Pool("environments", 1024)


@dataclass(slots=True)
class _Job:
    function: Callable[[], Any]
    context: contextvars.Context
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    finished: bool = False  # while somebody still waited

    def run(self) -> None:
        """Call the function and hand its result or exception to the waiting loop."""
        result, error = None, None
        try:
            result = self.context.run(self.function)
        except BaseException as raised:  # noqa: BLE001  boundary: user code, sys.exit included
            error = raised
        if isinstance(error, StopIteration):  # asyncio refuses it as the exception of a future
            error = RuntimeError(f"raised {error!r}")
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop ended while this ran; nobody waits any more
            pass

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():  # the deadline has passed, or the caller was cancelled
            return
        self.finished = True
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def expire(self, timeout_s: float) -> None:
        """The deadline has passed."""
        if not self.future.done():
            error = TimeoutError(f"no answer after {timeout_s:g} s; its thread runs on")
            self.future.set_exception(error)


@dataclass(slots=True)
class _Places:
    """A semaphore, first come first served; asyncio's looks through all who wait at each step."""

    free: int
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)

    async def take(self) -> None:
        if self.free:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # the place came in the same moment
            raise

    def give_back(self) -> None:
        while self.queue:
            turn = self.queue.popleft()
            if not turn.done():  # not cancelled meanwhile
                turn.set_result(None)
                return
        self.free += 1


class _Worker(threading.Thread):
    """A thread that runs jobs until nobody waits for one of them."""

    def __init__(self) -> None:
        super().__init__(name="user-code", daemon=True)
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.run()


_Slots = WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Pool, _Places]]
_slots: _Slots = WeakKeyDictionary()
_idle: list[_Worker] = []  # append and pop are atomic; several loops may share the workers
_hung: set[_Worker] = set()


def hung_threads() -> int:
    """Functions still running although nobody waits for them any more."""
    for worker in list(_hung):
        if not worker.is_alive():
            _hung.discard(worker)
    return len(_hung)


async def in_thread(function: Callable[[], Any], timeout_s: float, pool: Pool = JUDGES) -> Any:
    """``function()`` in a thread of ``pool``.

    Raises TimeoutError when it takes longer than ``timeout_s``.
    """
    loop = asyncio.get_running_loop()
    places = _slots.setdefault(loop, {}).setdefault(pool, _Places(pool.threads))
    await places.take()
    try:
        if _hung and hung_threads() >= MAX_HUNG_THREADS:
            raise RuntimeError(f"{MAX_HUNG_THREADS} earlier calls hang and hold their threads")
        worker = _take()
        job = _Job(function, contextvars.copy_context(), loop.create_future(), loop)
        worker.jobs.put(job)
        timer = loop.call_later(timeout_s, job.expire, timeout_s)
        try:
            return await job.future
        finally:  # the caller's cancellation leaves a thread behind just as the deadline does
            timer.cancel()
            _put_back(worker, finished=job.finished)
    finally:
        places.give_back()


def _take() -> _Worker:
    while _idle:
        worker = _idle.pop()
        if worker.is_alive():  # none is in a process forked from ours
            return worker
    worker = _Worker()
    worker.start()
    return worker


def _put_back(worker: _Worker, *, finished: bool) -> None:
    if finished:
        _idle.append(worker)
        return
    worker.jobs.put(None)  # its last
    _hung.add(worker)
