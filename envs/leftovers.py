"""What an episode leaves behind in this process: threads, child processes, descriptors, files.

Pools that are filled once and used again (the threads of plain methods, the processes of rewards)
are no leftovers, so nothing is counted for itself: after one round of episodes, a second one must
not leave more than the first did. What every episode leaks is one more for each. Temporary files
are seen where they are made through ``tempfile``. Descriptors and processes are read from
``/proc``; where there is none they are not looked at.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

EPISODES = 4
SETTLE_S = 2.0  # a socket's other end, or a killed child, may take a moment to go


async def left_behind(episode: Callable[[], Awaitable[None]]) -> list[str]:
    """What each episode leaves, one sentence of each kind."""
    kept = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="check-") as scratch:
        tempfile.tempdir = scratch
        try:
            for _ in range(EPISODES):
                await episode()
            before = _counts(scratch)
            for _ in range(EPISODES):
                await episode()
            return await _grown(before, scratch)
        finally:
            tempfile.tempdir = kept


async def _grown(before: dict[str, int], scratch: str) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = _counts(scratch)
        grown = {what: after[what] - n for what, n in before.items()}
        leaks = [
            f"{n} {what} after {EPISODES} episodes" for what, n in grown.items() if n >= EPISODES
        ]
        if not leaks or time.monotonic() > deadline:
            return leaks
        gc.collect()  # a cycle may hold a file
        await asyncio.sleep(0.05)


def _counts(scratch: str) -> dict[str, int]:
    counts = {
        "threads": threading.active_count(),
        "asyncio tasks": len(asyncio.all_tasks()),
        "temporary files": sum(1 for _ in Path(scratch).iterdir()),
    }
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        links = [_target(one) for one in descriptors.iterdir()]
        counts["open sockets"] = sum(link.startswith("socket:") for link in links)
        counts["open files"] = len(links) - counts["open sockets"]
        counts["processes"] = _children()
    return counts


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile: it is that of the listing itself
        return ""


def _children() -> int:
    """Child processes, also those that ended and were not waited for."""
    found = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        found += parent == str(os.getpid())
    return found
