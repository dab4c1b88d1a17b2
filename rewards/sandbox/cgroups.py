"""Control groups for one place of a sandbox: what all processes of a program use together.

Version 1 has one tree per controller, version 2 one tree for all; either is used where we may
write, and neither is needed: ``make`` returns None then, and ``rewards.sandbox.usage`` counts by
looking. A group lives as long as its place and serves one program after another, since the kernel
keeps remains of every group that ever held a page of a file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "rewards-sandbox"
NEEDED = ("memory", "pids")  # without these two a group would not help
# What is ours in the group: the launcher, a program's init process, bubblewrap's monitor.
OUR_PROCESSES = 3
SLACK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """The folders of one group: one per controller in version 1, the same one in version 2."""

    memory: str
    pids: str
    cpu: str  # "" where CPU time cannot be counted
    version: int

    def folders(self) -> list[str]:
        return list(dict.fromkeys(one for one in (self.memory, self.pids, self.cpu) if one))

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the limits for the next program. Raises OSError."""
        memory = str(memory_bytes + SLACK_BYTES)
        _write(f"{self.pids}/pids.max", str(processes + OUR_PROCESSES))
        if self.version == 2:
            _write(f"{self.memory}/memory.max", memory)
            with suppress(OSError):  # no swap accounting: then there is none to limit
                _write(f"{self.memory}/memory.swap.max", "0")
            return
        # The limit with swap may never be below the one without: first lift it, then lower both.
        with suppress(OSError):
            _write(f"{self.memory}/memory.memsw.limit_in_bytes", "-1")
        with suppress(OSError):  # what an earlier program left in the page cache
            _write(f"{self.memory}/memory.force_empty", "0")
        _write(f"{self.memory}/memory.limit_in_bytes", memory)
        with suppress(OSError):
            _write(f"{self.memory}/memory.memsw.limit_in_bytes", memory)

    def join(self) -> None:
        """Move this process into the group, and so all that it will start."""
        for folder in self.folders():
            _write(f"{folder}/cgroup.procs", "0")

    def cpu_s(self) -> float:
        """CPU seconds used since the group was made; 0 where they are not counted."""
        if not self.cpu:
            return 0.0
        if self.version == 1:
            return int(_read(f"{self.cpu}/cpuacct.usage")) / 1e9
        return _field(_read(f"{self.cpu}/cpu.stat"), "usage_usec") / 1e6

    def out_of_memory(self) -> int:
        """How often the kernel has killed a process of the group for memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _field(_read(f"{self.memory}/{name}"), "oom_kill")

    def remove(self) -> None:
        for folder in self.folders():
            with suppress(OSError):  # still busy or gone: the next ``make`` sweeps it
                os.rmdir(folder)


def make(name: str, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> Group | None:
    """A new group below our own, or None where that is not possible.

    ``name`` must hold the process id at its start: ``sweep`` goes by it.
    """
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return None
    folders: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            folders[controller] = path
    full_name = f"{PREFIX}-{name}"
    return _version_1(full_name, root, folders) or _version_2(full_name, root, folders)


def _version_1(name: str, root: str, folders: dict[str, str]) -> Group | None:
    if not all(controller in folders for controller in NEEDED):
        return None
    made = {
        controller: _new_folder(f"{root}/{controller}", folders.get(controller, "/"), name)
        for controller in (*NEEDED, "cpuacct")
    }
    group = Group(made["memory"], made["pids"], made["cpuacct"], version=1)
    if all(made[controller] for controller in NEEDED):
        return group
    group.remove()
    return None


def _version_2(name: str, root: str, folders: dict[str, str]) -> Group | None:
    """Below the nearest ancestor that hands its controllers down: one with processes cannot."""
    if "" not in folders:
        return None
    here = Path(root + folders[""])
    for ancestor in (here, *here.parents):
        if not ancestor.is_relative_to(root):
            return None
        try:
            handed_down = (ancestor / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        if not all(controller in handed_down for controller in NEEDED):
            continue
        folder = _new_folder(str(ancestor), "/", name)
        if folder and os.access(f"{folder}/cgroup.procs", os.W_OK):
            return Group(folder, folder, folder, version=2)
    return None


def _new_folder(tree: str, below: str, name: str) -> str:
    """The new folder, or "" where it cannot be made. Our own path may lie outside what we see."""
    for base in dict.fromkeys((tree + below.rstrip("/"), tree)):
        if not os.path.isdir(base):
            continue
        _sweep(base)
        with suppress(OSError):
            os.mkdir(f"{base}/{name}")
            return f"{base}/{name}"
    return ""


def _sweep(base: str) -> None:
    """Remove the groups of processes that were killed before they could."""
    for entry in os.listdir(base):
        if entry.startswith(PREFIX + "-"):
            owner = entry.removeprefix(PREFIX + "-").split("-")[0]
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                with suppress(OSError):
                    os.rmdir(f"{base}/{entry}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
