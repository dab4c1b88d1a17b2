"""Decides what is shown while tasks run, and when they count as stalled."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from pretrain.data.chain import task_file

_TERMINAL_S, _LOG_S = 1.0, 10.0


class Progress:
    """A line about the tasks of a folder, on stderr, for the time of a ``with`` block.

    When no task has said anything for ``stall_s`` the block is interrupted and ``stalled`` is true:
    a worker that was killed by the system leaves the others waiting for ever.
    """

    def __init__(self, out: Path, tasks: int, *, stall_s: float, stream: TextIO | None = None):
        self.out, self.tasks, self.stall_s = out, tasks, stall_s
        self.stream = stream or sys.stderr
        self.stalled = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._started = time.monotonic()
        self._shown = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._show(last=True)

    def line(self) -> str:
        """``steps: 3/8 tasks, 12,345 documents in, 8,123 kept (66 %), 210 documents/s``."""
        totals: Counter[str] = Counter()
        for rank in range(self.tasks):
            totals.update(self._read(rank))
        seconds = max(time.monotonic() - self._started, 1e-9)
        share = 100 * totals["kept"] / max(totals["in"], 1)
        return (
            f"steps: {totals['done']}/{self.tasks} tasks, {totals['in']:,} documents in, "
            f"{totals['kept']:,} kept ({share:.0f} %), {totals['in'] / seconds:,.0f} documents/s"
        )

    def _read(self, rank: int) -> dict[str, int]:
        try:
            record = json.loads(task_file(self.out, rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # it has not begun
            return {}
        return {**record["totals"], "done": int(record["done"])}

    def _watch(self) -> None:
        every = _TERMINAL_S if self.stream.isatty() else _LOG_S
        heard, changed, shown = "", time.monotonic(), time.monotonic()
        while not self._stop.wait(min(_TERMINAL_S, self.stall_s / 4)):
            now, news = time.monotonic(), self._heard()
            if news != heard:
                heard, changed = news, now
            elif now - changed > self.stall_s:
                self.stalled = True
                os.kill(os.getpid(), signal.SIGINT)  # wakes the main thread from its wait
                return
            if now - shown >= every:
                self._show()
                shown = now

    def _heard(self) -> str:
        folder = task_file(self.out, 0).parent
        if not folder.is_dir():
            return ""
        return max((f"{p.stat().st_mtime_ns} {p.name}" for p in folder.glob("*.json")), default="")

    def _show(self, last: bool = False) -> None:
        line = self.line()
        if line == self._shown and not last:
            return
        self._shown = line
        if self.stream.isatty():
            self.stream.write("\r\x1b[K" + line + ("\n" if last else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
