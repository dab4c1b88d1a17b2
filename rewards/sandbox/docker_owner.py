"""Decides to whom a container belongs, and whether that process still lives.

A process is named by its machine's boot, its process-id namespace, its id and its start time, so
that neither a reboot nor a reused id, nor a process of another container, is taken for the owner.
Only an owner seen on this machine can be called dead; what others own is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path

OWNER_LABEL = "posttrain.sandbox.owner"
POOL_LABEL = "posttrain.sandbox.pool"


def ourselves() -> str:
    """``boot/pid namespace/pid/start time`` of this process."""
    pid = os.getpid()
    return f"{_here()}/{pid}/{_start_time(pid)}"


def has_ended(owner: str) -> bool:
    """Whether the owner ran here and does no more. False for one that can't be judged from here."""
    here, _, rest = owner.rpartition("/")
    here, _, pid = here.rpartition("/")
    if here != _here() or not pid.isdigit():
        return False
    return _start_time(int(pid)) != rest


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _start_time(pid: int) -> str:
    """In clock ticks since boot; "" when there is no such process (or only its zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "" if fields[0] in "ZX" else fields[19]
