"""Decides what a program finds, and how the container becomes empty again after it.

Everything writable in the container is in memory, below WRITABLE. Whatever a program left there or
in the kernel is removed; ``clean_up`` then looks for anything that is left all the same.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from collections.abc import Callable
from typing import Any

TMP = "/tmp"
WORK = f"{TMP}/work"
WRITABLE = (TMP, "/dev/shm")
# What outlives a process: System V IPC, and sockets (a TCP port waits a minute after its end).
TABLES = [f"/proc/sysvipc/{name}" for name in ("shm", "sem", "msg")]
TABLES += [f"/proc/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6", "raw", "unix")]
OWN_FILES = 3  # of TMP: its root, WORK, and the ballast's first
CLEAN_S = 3.0  # for killing what is left


class Ballast:
    """Makes a file system smaller: what a program may not use of it, the agent holds itself.

    The container was made for the largest programs. What is held has no name, so that nobody can
    remove it, and is kept from one program to the next, which mostly has the same limits.
    """

    def __init__(self) -> None:
        space = os.statvfs(TMP)
        self.bytes, self.files = space.f_blocks * space.f_frsize, space.f_files
        self.held = [self._file()]
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.most = most - 256  # an engine's own default is thousands

    def fit(self, limits: dict[str, Any]) -> None:
        """Leave a program its ``disk_bytes`` and ``files``. Raises OSError."""
        spare = max(self.bytes - limits["disk_bytes"], 0)
        if os.fstat(self.held[0]).st_size != spare:
            os.ftruncate(self.held[0], 0)
            if spare:
                os.posix_fallocate(self.held[0], 0, spare)
        spare = min(max(self.files - OWN_FILES - limits["files"], 0), self.most)
        while len(self.held) > spare + 1:
            os.close(self.held.pop())
        while len(self.held) < spare + 1:
            self.held.append(self._file())

    def _file(self) -> int:
        return os.open(TMP, os.O_TMPFILE | os.O_RDWR, 0o600)


def lay_out(files: list[list[Any]], content: memoryview) -> None:
    """Make the working directory with its files. Raises OSError, ValueError."""
    os.mkdir(WORK, 0o755)
    at = 0
    for name, size in files:
        path = os.path.join(WORK, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"{name!r} is not below the working directory")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content[at : at + size])
        at += size


def wipe(top: bytes) -> None:
    """Empty a directory, however deep and whatever its modes: what is nested is moved up first."""
    serial, salt = 0, os.urandom(16).hex().encode()  # no name that it could have chosen
    while names := os.listdir(top):
        for name in names:
            path = os.path.join(top, name)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                below = os.path.join(path, inner)
                if not stat.S_ISDIR(os.lstat(below).st_mode):
                    os.unlink(below)
                    continue
                serial += 1
                os.chmod(below, 0o700)
                os.rename(below, os.path.join(top, b"%s-%d" % (salt, serial)))
            os.rmdir(path)


def kill_the_rest(reap: Callable[[], None]) -> None:
    """Kill every process but ourselves until there is none; gives up after CLEAN_S."""
    deadline = time.monotonic() + CLEAN_S
    while time.monotonic() < deadline:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        reap()
        time.sleep(0.0005)


def clean_up() -> str:
    """Remove what a program left; "" or, when something is left all the same, what it is."""
    try:
        for top in WRITABLE:
            wipe(os.fsencode(top))
    except OSError as error:
        return f"not emptied: {error}"
    processes = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if processes:
        return f"{len(processes)} processes are left"
    for top in (*WRITABLE, "/dev/mqueue"):
        if os.path.isdir(top) and os.listdir(top):
            return f"{top} is not empty"
    for table in filter(os.path.exists, TABLES):
        with open(table) as lines:
            if len(lines.readlines()) > 1:  # the first names the columns
                return f"{table} is not empty"
    return ""
