"""How long a part of a run was at work: what the idle shares of a step are made of."""

from __future__ import annotations

import time
from typing import Self


class Busy:
    """A stopwatch that runs while its part works. Also a ``with`` block around the work."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since: float | None = None

    def note(self, working: bool) -> None:
        """Say whether it works from now on; saying the same again changes nothing."""
        now = time.perf_counter()
        if self._since is not None:
            self._total += now - self._since
        self._since = now if working else None

    @property
    def seconds(self) -> float:
        """Worked so far, this moment included."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._total + running

    def __enter__(self) -> Self:
        self.note(True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.note(False)
