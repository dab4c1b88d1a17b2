"""Which request goes next, and to which server.

Next goes the one of the oldest step. Steps are trained in order, so what the learner waits for is
never behind rollouts of a later step: not the second turn of an episode, not a refill of a group.

It goes to the server that is expected to be done with it first: the fewest requests in flight,
each weighed by the seconds a token takes there. With equal servers that is the one with the fewest
requests; one that is four times as slow gets a fifth of them, even where a step's requests all come
at once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from typing import Protocol, TypeVar

_MEMORY = 0.9  # of the moving average: some ten completions


class Pace:
    """Seconds that a token takes on a server, as a request sees it: a moving average."""

    def __init__(self) -> None:
        self.token_s = 0.0  # 0: not known

    def note(self, seconds: float, tokens: int) -> None:
        """A completion of ``tokens`` tokens took ``seconds``."""
        new = seconds / max(tokens, 1)
        self.token_s = _MEMORY * self.token_s + (1 - _MEMORY) * new if self.token_s else new

    def forget(self) -> None:
        """The server is another process now."""
        self.token_s = 0.0


class Loaded(Protocol):
    """What routing looks at."""

    in_flight: int
    pace: Pace


L = TypeVar("L", bound=Loaded)


def least_loaded(servers: Iterable[L]) -> L | None:
    """The one to ask next; None without any. A server of unknown pace counts as the fastest."""
    ready = list(servers)
    fastest = min((s.pace.token_s for s in ready if s.pace.token_s), default=1.0)
    return min(ready, key=lambda s: (s.in_flight + 1) * (s.pace.token_s or fastest), default=None)


class OldestFirst:
    """A number of slots; the next free one goes to the waiter of the lowest step, in order."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap
        self._arrivals = itertools.count()

    async def acquire(self, step: int) -> None:
        """Wait for a slot; ``release`` it afterwards."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (step, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had just been given the slot
                self.release()
            raise

    def release(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                return
        self._free += 1
