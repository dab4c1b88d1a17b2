"""Decides how much a program has used: reads the container's own control group.

It counts for everything in the container together, which resource limits of a process cannot.
Version 1 and 2 of control groups are read, where the container runtime mounts them (read-only).
Memory is what is charged to the container less its files: what processes have, and what the kernel
holds for them (buffers of pipes and sockets).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

CGROUP = "/sys/fs/cgroup"
# what -> (file, key or "" where it is all there is) of version 2 and of version 1
FILES = {
    "cpu": (("cpu.stat", "usage_usec"), ("cpuacct/cpuacct.usage", "")),
    "charged": (("memory.current", ""), ("memory/memory.usage_in_bytes", "")),
    "files": (("memory.stat", "file"), ("memory/memory.stat", "cache")),
    "kills": (("memory.events", "oom_kill"), ("memory/memory.oom_control", "oom_kill")),
    "limit": (("memory.max", ""), ("memory/memory.limit_in_bytes", "")),
}
PER_SECOND = {"usage_usec": 1e6, "": 1e9}


@dataclass(slots=True)
class Meter:
    """CPU time, memory and kernel kills of the container; 0 where one can't be read."""

    _sources: dict[str, tuple[int, str]] = field(default_factory=dict)
    _cpu: int = 0  # at ``start``
    _kills: int = 0

    def __post_init__(self) -> None:
        for what, places in FILES.items():
            for name, key in places:
                try:
                    handle = os.open(f"{CGROUP}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue
                self._sources[what] = (handle, key)
                break

    def start(self) -> None:
        """Count time and kills from here."""
        self._cpu, self._kills = self._now("cpu"), self._now("kills")

    def cpu_s(self) -> float:
        """Since ``start``, of all processes together."""
        unit = PER_SECOND[self._sources["cpu"][1]] if "cpu" in self._sources else 1.0
        return (self._now("cpu") - self._cpu) / unit

    def memory(self) -> int:
        """Bytes in use now, the agent's own few included."""
        return self._now("charged") - self._now("files")

    def kills(self) -> int:
        """How often the kernel ended a process for want of memory, since ``start``."""
        return self._now("kills") - self._kills

    def memory_limit(self) -> int:
        """Bytes that the container may have."""
        return self._now("limit")

    def _now(self, what: str) -> int:
        if what not in self._sources:
            return 0
        handle, key = self._sources[what]
        for line in os.pread(handle, 8192, 0).decode("ascii", "replace").splitlines():
            name, _, value = line.rpartition(" ")
            if name == key:
                return int(value) if value.isdigit() else 0  # "max" is no limit
        return 0
