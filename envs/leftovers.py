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
from typing import Any

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
            before = _living(scratch)
            for _ in range(EPISODES):
                await episode()
            return await _grown(before, scratch)
        finally:
            tempfile.tempdir = kept


async def _grown(before: dict[str, set[Any]], scratch: str) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = _living(scratch)
        grown = {what: len(after[what] - known) for what, known in before.items()}
        leaks = [
            f"{n} {what} after {EPISODES} episodes" for what, n in grown.items() if n >= EPISODES
        ]
        if not leaks or time.monotonic() > deadline:
            return leaks
        gc.collect()  # a cycle may hold a file
        await asyncio.sleep(0.05)


def _living(scratch: str) -> dict[str, set[Any]]:
    """What there is now, each by what tells it apart: others may end meanwhile."""
    living: dict[str, set[Any]] = {
        "threads": {thread.ident for thread in threading.enumerate()},
        "asyncio tasks": set(asyncio.all_tasks()),
        "temporary files": {one.name for one in Path(scratch).iterdir()},
    }
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        links = {(one.name, _target(one)) for one in descriptors.iterdir()}
        living["open sockets"] = {link for link in links if link[1].startswith("socket:")}
        living["open files"] = links - living["open sockets"]
        living["processes"] = _children()
    return living


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile: it is that of the listing itself
        return ""


def _children() -> set[str]:
    """Child processes, also those that ended and were not waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        if parent == str(os.getpid()):
            found.add(entry.name)
    return found
