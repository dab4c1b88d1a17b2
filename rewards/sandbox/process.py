"""The backend without isolation: limits on resources, for programs you trust.

A program runs as your user, sees your files, the network and your other processes, and can end or
change them. What it gets is a folder, a bare environment, deadlines, bounded output, and an end
with all its descendants. ``rewards.sandbox.load`` refuses it without ``allow_unsafe=True``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping

from rewards.errors import UsageError
from rewards.sandbox.place import Place, Pool
from rewards.sandbox.protocol import Finished, Program, Session, SessionLimits
from rewards.sandbox.rootfs import SETTINGS


class ProcessSandbox:
    """Runs programs as plain processes, ``places`` of them at once (default: one per core).

    ``disk_bytes`` limits each file, not their sum, and ``files`` is not limited.
    """

    name = "process"

    def __init__(self, places: int = 0, *, control_group: bool = True) -> None:
        self._control_group = control_group
        self._path = os.environ.get("PATH", os.defpath)
        first = self._place()
        group = first.group
        self.layers: tuple[str, ...] = (
            "NO ISOLATION: programs can do what you can",
            f"cgroup v{group.version}: memory, processes, CPU time"
            if group
            else "NO cgroup: memory, CPU time and processes by rlimits and by looking every 20 ms",
            "size of a file, not of all files together",
        )
        self._pool = Pool(self._place, places or len(os.sched_getaffinity(0)), first)

    def run(self, program: Program) -> Finished:
        return self._pool.run(program)

    def session(
        self, files: Mapping[str, bytes] | None = None, limits: SessionLimits | None = None
    ) -> Session:
        """Refused: a session ends what overruns its time by killing all that it can see."""
        raise UsageError("the sandbox 'process' has no sessions: use 'bubblewrap' or 'docker'")

    def has(self, command: str) -> bool:
        return "/" not in command and shutil.which(command, path=self._path) is not None

    def close(self) -> None:
        self._pool.close()

    def _place(self) -> Place:
        config = {
            "kind": "process",
            "folder": tempfile.gettempdir(),
            "environment": {**SETTINGS, "PATH": self._path},
            "user": -1,
            "limit_processes": False,
            "seccomp": "",
        }
        return Place(config, control_group=self._control_group)
