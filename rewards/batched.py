"""Decides which samples a batch reward judges together, and what becomes of each.

A batch reward is a function with the same argument names as any other reward; each argument is a
list with one entry per sample, and so is what it returns::

    @rewards.register("shorter_than_its_neighbours", batch=True)
    def shorter(completion: list[str]) -> list[float]:
        mean = sum(map(len, completion)) / len(completion)
        return [float(len(text) < mean) for text in completion]

An entry of the result is a float, bool or Score, or None for a sample it could not judge. Settings
(``load(name, limit=50)``) come as they are, not as lists.

``rewards.apply`` still judges one sample. The samples that ask within ``window_s`` of the first,
``max_batch`` at most, are judged in one call, whose deadline starts when it does. They may come
from any prompt: a batch is not a group. Batches do not wait for one another. An exception, a
deadline or a result of the wrong length leaves exactly the samples of that call unjudged; a sample
whose caller is cancelled before the call is not in it, and a call that nobody waits for any more is
cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from rewards.calling import Case, arguments, as_score, call, unjudged
from rewards.registry import name_of, required_columns
from rewards.score import Outcome, Score

MAX_BATCH = 64
WINDOW_S = 0.02

BatchReward = Callable[..., Any]


@dataclass(slots=True)
class _Waiting:
    """One sample on its way into a batch."""

    kwargs: dict[str, Any]
    timeout_s: float
    score: asyncio.Future[Score]

    def settle(self, score: Score) -> None:
        if not self.score.done():  # done: its caller was cancelled
            self.score.set_result(score)


@dataclass(slots=True)
class _Gathering:
    """What waits on one event loop; empty, it holds no reference to the loop."""

    waiting: list[_Waiting] = field(default_factory=list)
    timed: bool = False  # a timer runs that will send off what waits
    running: set[asyncio.Task[None]] = field(default_factory=set)


class Batched:
    """A batch function as a reward; ``rewards.register(..., batch=True)`` makes one.

    Make it by hand for another size or window: ``rewards.Batched(function, max_batch=8)``.
    """

    def __init__(
        self, function: BatchReward, *, max_batch: int = MAX_BATCH, window_s: float = WINDOW_S
    ) -> None:
        self.function = function
        self.max_batch = max_batch
        self.window_s = window_s
        self.name = name_of(function)
        self.required_columns = required_columns(function)
        self.check_row = getattr(function, "check_row", None)
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Gathering] = WeakKeyDictionary()

    def around(self, function: BatchReward) -> Batched:
        """The same for another function."""
        return Batched(function, max_batch=self.max_batch, window_s=self.window_s)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself: lists in, a list out."""
        return self.function(*args, **kwargs)

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """Judge one sample in the next batch. Raises KeyError for a missing column."""
        loop = asyncio.get_running_loop()
        gathering = self._loops.setdefault(loop, _Gathering())
        one = _Waiting(arguments(self.function, case), timeout_s, loop.create_future())
        gathering.waiting.append(one)
        if len(gathering.waiting) >= self.max_batch:
            self._start(gathering)
        elif not gathering.timed:
            gathering.timed = True
            loop.call_later(self.window_s, self._window_closes, gathering)
        return await one.score

    def _window_closes(self, gathering: _Gathering) -> None:
        gathering.timed = False
        self._start(gathering)

    def _start(self, gathering: _Gathering) -> None:
        """Send off what waits, in one call for each deadline and set of columns."""
        batches: dict[tuple[float, frozenset[str]], list[_Waiting]] = {}
        for one in gathering.waiting:
            if not one.score.done():
                batches.setdefault((one.timeout_s, frozenset(one.kwargs)), []).append(one)
        gathering.waiting = []
        for batch in batches.values():
            task = asyncio.get_running_loop().create_task(self._judge(batch))
            gathering.running.add(task)
            task.add_done_callback(gathering.running.discard)
            _cancel_when_unwanted(task, batch)

    async def _judge(self, batch: list[_Waiting]) -> None:
        kwargs = {name: [one.kwargs[name] for one in batch] for name in batch[0].kwargs}
        try:
            returned = _entries(await call(self.function, kwargs, batch[0].timeout_s), len(batch))
        except asyncio.CancelledError:  # the loop is ending
            for one in batch:
                one.score.cancel()
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  boundary: user code
            for one in batch:
                one.settle(unjudged(self, error))
            return
        for one, entry in zip(batch, returned, strict=True):
            one.settle(self._read(entry))

    def _read(self, entry: Any) -> Score:
        if entry is None:
            detail = f"reward {name_of(self)!r}: could not judge this sample of the batch"
            return Score(None, Outcome.ERROR, detail=detail)
        try:
            return as_score(entry)
        except (TypeError, ValueError) as error:
            return unjudged(self, error)


def _entries(returned: Any, n: int) -> Sequence[Any]:
    """The result of a batch as a list of ``n``. Raises TypeError or ValueError."""
    if hasattr(returned, "tolist"):
        returned = returned.tolist()  # numpy or torch
    if not isinstance(returned, Sequence) or isinstance(returned, str):
        raise TypeError(f"returned {returned!r:.200}, not a list of {n} scores")
    if len(returned) != n:
        raise ValueError(f"returned {len(returned)} scores for {n} samples")
    return returned


def _cancel_when_unwanted(task: asyncio.Task[None], batch: list[_Waiting]) -> None:
    """Cancel the call once every caller has been cancelled."""

    def look(_: asyncio.Future[Score]) -> None:
        if all(one.score.cancelled() for one in batch):
            task.cancel()

    for one in batch:
        one.score.add_done_callback(look)
