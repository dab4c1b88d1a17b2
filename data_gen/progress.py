"""Says how far a generator is: one line that renews itself, or a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from data_gen.records import Record

if TYPE_CHECKING:
    from data_gen.servers import Servers

_EVERY_S = {True: 0.5, False: 30.0}  # on a terminal; in a log


class Progress:
    """Counts what is done; prints to standard error unless ``quiet``."""

    def __init__(self, total: int | None, *, name: str = "", quiet: bool = False) -> None:
        self.total, self.name, self.quiet = total, name, quiet
        self.servers: Servers | None = None
        self.done = self.before = self.kept = self.dropped = self.failures = 0
        self._tty = sys.stderr.isatty()
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._told = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._tell(end="\n")

    def finished_before(self) -> None:
        """An item was done by an earlier call."""
        self.before += 1

    def finished(self, records: Sequence[Record]) -> None:
        self.done += 1
        dropped = sum(bool(record.dropped) for record in records)
        self.dropped += dropped
        self.kept += len(records) - dropped
        self._now_and_then()

    def failed(self) -> None:
        self.failures += 1
        self._now_and_then()

    def _now_and_then(self) -> None:
        if time.monotonic() - self._told >= _EVERY_S[self._tty]:
            self._tell(end="\r" if self._tty else "\n")

    def _tell(self, end: str) -> None:
        self._told = time.monotonic()
        if not self.quiet:
            clear = "\x1b[2K" if self._tty else ""
            print(f"{clear}{self.line()}", end=end, file=sys.stderr, flush=True)

    def line(self) -> str:
        """Items, records, tokens, cost and time left, as far as they are known."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        ended = self.done + self.failures
        parts = [f"{self.name}: {self.before + ended}"]
        if self.total is not None:
            parts[0] += f" of {self.total}"
        parts.append(f"kept {self.kept}, dropped {self.dropped}, failed {self.failures}")
        if self.servers is not None:
            tokens = self.servers.counts["completion_tokens"]
            parts.append(f"{tokens / seconds:,.0f} tokens/s")
            if self.servers.cost:
                parts.append(f"cost {self.servers.cost:.2f}")
        if self.total is not None and ended:
            left = max(0, self.total - self.before - ended) * seconds / ended
            parts.append(f"{left:,.0f} s left")
        return " | ".join(parts)
