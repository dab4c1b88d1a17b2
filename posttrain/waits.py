"""What this process waits for right now, and the processes it started.

    with waiting("weight sync 12, finish", deadline_s=120, owner="http://127.0.0.1:8000"):
        ...

Decides what a wait says of itself: a name, who owes the answer, since when, and its deadline, if it
has one of its own. Waits of one kind (``many``: hundreds of requests) are told as one with their
number and the oldest of them. Nothing here waits, ends a wait or raises; a wait costs about two
microseconds, and the registry, one dictionary for the process, is safe in threads and tasks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any, Self

# Kinds of which there are many at once.
REQUESTS = "engine requests"
QUEUED = "requests waiting for a slot"
REWARDS = "reward calls"
ENVIRONMENTS = "environment calls"
_MOST_OWNERS = 4  # named of one kind

_live: dict[int, waiting] = {}  # by a number that grows: the oldest first
_numbers = itertools.count()
_processes: dict[str, int] = {}
_elsewhere: dict[str, str] = {}


class waiting:
    """One wait, for the time of a ``with`` block. A new one each time.

    In small letters, because it reads as a statement; a class, because it costs half of a
    ``contextmanager``.
    """

    __slots__ = ("_number", "deadline_s", "many", "name", "owner", "since")

    def __init__(
        self, name: str, *, deadline_s: float | None = None, owner: str = "", many: str = ""
    ) -> None:
        self.name, self.deadline_s, self.owner, self.many = name, deadline_s, owner, many
        self.since = 0.0
        self._number = -1

    def __enter__(self) -> Self:
        self.since = time.time()  # readable by another process
        self._number = next(_numbers)
        _live[self._number] = self
        return self

    def __exit__(self, *exception: object) -> None:
        _live.pop(self._number, None)


def started(name: str, pid: int) -> None:
    """A process of this run; one of the same name before it is gone."""
    _processes[name] = pid


def elsewhere(name: str, host: str) -> None:
    """A part of this run on another machine, or one that this run only uses."""
    _elsewhere[name] = host


def ended(name: str) -> None:
    """It was ended on purpose."""
    _processes.pop(name, None)
    _elsewhere.pop(name, None)


def processes() -> dict[str, int]:
    """Name -> pid."""
    return dict(_processes)


def parts_elsewhere() -> dict[str, str]:
    """Name -> host."""
    return dict(_elsewhere)


def snapshot() -> list[dict[str, Any]]:
    """Every wait in progress, one record for each kind, the oldest first."""
    kinds: dict[str, list[waiting]] = {}
    for wait in list(_live.values()):
        kinds.setdefault(wait.many or wait.name, []).append(wait)
    return [_record(kind, waits) for kind, waits in kinds.items()]


def _record(kind: str, waits: list[waiting]) -> dict[str, Any]:
    oldest = waits[0]
    return {
        "name": kind,
        "owner": _owners(wait.owner for wait in waits),
        "since": oldest.since,
        "deadline_s": oldest.deadline_s,
        "count": len(waits),
        "oldest": oldest.name,
        "oldest_owner": oldest.owner,
    }


def _owners(owners: Iterable[str]) -> str:
    names = list(dict.fromkeys(filter(None, owners)))
    more = len(names) - _MOST_OWNERS
    return ", ".join(names[:_MOST_OWNERS]) + (f" and {more} more" if more > 0 else "")
