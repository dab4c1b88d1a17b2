"""Decides when a judge has spent its tokens.

Before a request its cost is not known. The first one therefore goes alone, and then as many at
once as would fit if each cost the mean of those before; the others wait. What is spent is what the
server counts. A budget can thus be passed by what requests cost more than the mean, but not by a
whole burst.
"""

from __future__ import annotations

import threading

from rewards.judge.failures import Failed
from rewards.score import Outcome


class Budget:
    """Tokens of one judge, over all threads and event loops. ``limit`` None only counts."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.spent = 0
        self.requests = 0  # that were answered
        self._in_flight = 0
        self._lock = threading.Lock()

    def admit(self) -> bool:
        """Whether one more request may go now; ``settle`` it. False: wait, others are under way.

        Raises Failed when it is all spent.
        """
        with self._lock:
            if self.limit is not None and not self._fits(self.limit):
                if self._in_flight:
                    return False
                raise Failed(
                    Outcome.ERROR,
                    f"the budget is spent: {self.spent} of {self.limit} tokens (budget_tokens), "
                    f"and a request costs about {self.spent / self.requests:.0f}",
                )
            self._in_flight += 1
            return True

    def _fits(self, limit: int) -> bool:
        if not self.requests:
            return not self._in_flight
        each = self.spent / self.requests
        return self.spent + (self._in_flight + 1) * each <= limit

    def settle(self, tokens: int | None) -> None:
        """A request is over; ``tokens`` is None where none was answered."""
        with self._lock:
            self._in_flight -= 1
            if tokens is not None:
                self.spent += tokens
                self.requests += 1
