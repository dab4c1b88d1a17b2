"""What the processes of one program use together, asked while it runs.

With a control group the kernel counts and enforces; without one ``ByLooking`` sums over /proc, and
what happens between two looks is bounded by the limits per process alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from rewards.sandbox.cgroups import Group
from rewards.sandbox.protocol import Ending, Limits

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(Protocol):
    def exceeded(self) -> Ending | None:
        """The limit that the program has passed, if any."""
        ...


class ByGroup:
    """Asks the control group; counts from the moment of its construction."""

    def __init__(self, group: Group, limits: Limits) -> None:
        self.group, self.limits = group, limits
        self.cpu_s, self.kills = group.cpu_s(), group.out_of_memory()

    def exceeded(self) -> Ending | None:
        if self.group.out_of_memory() > self.kills:
            return Ending.MEMORY
        if self.group.cpu_s() - self.cpu_s > self.limits.cpu_s:
            return Ending.CPU
        return None


class ByLooking:
    """Sums over the processes that ``pids`` names at each look.

    CPU time of a process that was reaped by its parent counts through the parent; of one whose
    parent ignored it, no longer.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], limits: Limits) -> None:
        self.pids, self.limits = pids, limits

    def exceeded(self) -> Ending | None:
        cpu_s, memory, threads, pids = 0.0, 0, 0, list(self.pids())
        for pid in pids:
            with suppress(OSError, ValueError, IndexError):  # gone since it was listed
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                cpu_s += sum(map(int, fields[11:15])) / _TICKS  # own and reaped children's
                threads += int(fields[17])
                memory += int(fields[21]) * _PAGE
        if cpu_s > self.limits.cpu_s:
            return Ending.CPU
        if memory > self.limits.memory_bytes and _shared_fairly(pids) > self.limits.memory_bytes:
            return Ending.MEMORY
        if threads > self.limits.processes:
            return Ending.SIGNAL
        return None


def _shared_fairly(pids: Iterable[int]) -> int:
    """Bytes in memory, a page of n processes counted once: exact, but slow to ask."""
    total = 0
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def descendants(root: int) -> list[int]:
    """``root``'s children, their children and so on, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError, IndexError):
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry))
    found, todo = [], [root]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found
