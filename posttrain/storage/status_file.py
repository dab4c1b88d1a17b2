"""status.json: what the orchestrator is doing, for whoever asks from another terminal.

    {"state": "running", "pid": ..., "host": ..., "written": Unix seconds,
     "waits": [...], "processes": {"server 0": {"pid": ..., "birth": ...}},
     "elsewhere": {"learner rank 1": host}}

Decides when it is written: by a thread of its own, so that a hang of the event loop shows, at most
twice a second and only when something changed, and every few seconds as a sign of life. Replaced
as a whole, never fsynced. Whatever goes wrong here is kept from the run. At the end it says how the
run ended; a run that was killed leaves ``running`` behind, with nobody holding the run's lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from posttrain import waits

NAME = "status.json"
PERIOD_S = 0.5
SIGN_OF_LIFE_S = 5.0
_LONGEST_ERROR = 2000  # characters


class StatusFile:
    """Keeps the file for the time of a ``with`` block around the run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._own = {"format": 1, "pid": os.getpid(), "host": socket.gethostname()}
        self._own |= {"birth": birth(os.getpid()), "started": time.time()}
        self._end: dict[str, str] = {"state": "running"}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._last: Any = None
        self._written = 0.0

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join(10 * PERIOD_S)
        self._end = _ending(error, (self._path.parent / "summary.json").exists())
        self._write()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._write()

    def _write(self) -> None:
        now = time.time()
        try:
            found = {"waits": waits.snapshot(), "processes": _processes(), **self._end}
            found["elsewhere"] = waits.parts_elsewhere()
            if found == self._last and now - self._written < SIGN_OF_LIFE_S:
                return
            self._last, self._written = found, now
            aside = self._path.with_name(NAME + ".tmp")
            aside.write_text(json.dumps({**self._own, "written": now, **found}))
            os.replace(aside, self._path)
        except OSError:
            """The disk is full, or the folder is gone: the run must not end for this file."""


def birth(pid: int) -> int:
    """When the process began, in clock ticks since boot; 0 where it is gone or can't be told.

    With it a pid names one process: pids are used again.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def process_state(pid: int, born: int) -> str:
    """ "alive", "stopped" (SIGSTOP, or a debugger) or "gone"."""
    fields = _stat(pid)
    if not fields or (born and int(fields[19]) != born) or fields[0] in "ZX":
        return "gone"
    return "stopped" if fields[0] in "Tt" else "alive"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold blanks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _processes() -> dict[str, dict[str, int]]:
    return {name: {"pid": pid, "birth": birth(pid)} for name, pid in waits.processes().items()}


def _ending(error: BaseException | None, has_summary: bool) -> dict[str, str]:
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return {"state": "stopped", "error": "interrupted"}
    if error is not None:
        return {"state": "failed", "error": f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]}
    return {"state": "finished" if has_summary else "stopped"}
