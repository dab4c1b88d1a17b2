"""One writer per run directory.

flock on a file, not a pid file: the kernel lets go of it when its process dies, ``kill -9``
included. The pid written into it is for people.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from weakref import WeakSet

from posttrain.errors import UsageError

_GRACE_S = 0.5  # a reader that asks ``held_elsewhere`` holds the lock for microseconds
_held: WeakSet[RunLock] = WeakSet()


class RunLock:
    """The lock of one run directory, not yet taken."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self) -> None:
        """Raises UsageError when another process, or another RunLock of this one, holds it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + _GRACE_S
        while not _try(fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                holder = _pid(fd) or "unknown"
                os.close(fd)
                raise UsageError(
                    f"{self.path.parent} is being written by another process (pid {holder}): "
                    "wait for it or stop it, or choose another run_dir"
                )
            time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def held_elsewhere(self) -> bool:
        """Whether a process that is not this one holds the lock right now."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try(fd, fcntl.LOCK_SH) and _pid(fd) != str(os.getpid())
        finally:
            os.close(fd)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _release_in_child() -> None:
    """A forked child shares its parent's locks and would keep them after the parent's death."""
    for lock in _held:
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
