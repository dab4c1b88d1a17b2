"""Starts, feeds and ends the two reasoning-gym worker processes of this program.

One makes tasks, the other scores answers, so that a scorer that has to be killed takes no task
with it. Both start when first needed (about two seconds: reasoning-gym and its imports), are shared
by all environments of the program, and end with it: at exit, or when their stdin closes because the
program was killed.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rewards import UsageError

START_TIMEOUT_S = 120.0
PROGRAM = Path(__file__).with_name("reasoning_worker.py")


class WorkerError(RuntimeError):
    """The worker raised, or died; the message holds its traceback or exit status."""


class Worker:
    """One worker process behind a lock; restarted when it died. Thread-safe, one job at a time."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any, deadline_s: float) -> Any:
        """Run one job. Raises TimeoutError, WorkerError, or UsageError for refused arguments.

        The deadline is the job's own: waiting for the worker to be free or to start is not in it.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                kind, result = self._exchange((deadline_s, method, arguments), deadline_s + 1.0)
            except (OSError, EOFError) as error:
                raise self._died(method, deadline_s) from error
            except BaseException:  # a reply may be under way: this process cannot be used again
                self._kill()
                raise
        if kind == "refused":
            raise UsageError(result)
        if kind != "ok":
            raise WorkerError(result)
        return result

    def close(self) -> None:
        """End the process. A later call starts another."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UsageError("reasoning-gym is not installed: pip install reasoning-gym")
        self._kill()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the program's to handle
        )
        try:
            self._exchange((START_TIMEOUT_S, "describe", ()), START_TIMEOUT_S)
        except (OSError, EOFError) as error:
            status = self._process.wait(5)
            self._kill()
            raise WorkerError(
                f"the reasoning-gym {self.role} worker did not start (exit status {status}): "
                "try `python -c 'import reasoning_gym'`"
            ) from error

    def _exchange(self, request: Any, timeout_s: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        payload = pickle.dumps(request)
        self._process.stdin.write(struct.pack(">I", len(payload)) + payload)
        self._process.stdin.flush()
        until = time.monotonic() + timeout_s
        (length,) = struct.unpack(">I", _read(self._process.stdout.fileno(), 4, until))
        return pickle.loads(_read(self._process.stdout.fileno(), length, until))

    def _died(self, method: str, deadline_s: float) -> Exception:
        """What the end of the process during a job means. Leaves no process."""
        assert self._process is not None
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        self._kill()
        self.restarts += 1
        if status == -14 or status is None:  # SIGALRM: its own deadline
            return TimeoutError(f"reasoning-gym {method}: no answer after {deadline_s:g} s")
        return WorkerError(f"the reasoning-gym {self.role} worker ended with status {status}")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close() if pipe else None
            except OSError:  # unwritten bytes to a dead process
                pass


def _read(fd: int, count: int, until: float) -> bytes:
    """Exactly ``count`` bytes. Raises EOFError, or OSError (ETIMEDOUT) when the time is up."""
    data = bytearray()
    while len(data) < count:
        left = until - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise OSError(f"the worker said nothing until its deadline ({count} bytes missing)")
        chunk = os.read(fd, count - len(data))
        if not chunk:
            raise EOFError("the worker ended")
        data += chunk
    return bytes(data)


TASKS = Worker("task")
SCORES = Worker("scoring")


@atexit.register
def shutdown() -> None:
    """End both workers; they start again when needed."""
    for worker in (TASKS, SCORES):
        worker.close()
