"""What a generator leaves on disk, and what makes it resumable.

    OUT/
      job.json               what was asked for; the same call goes on, another is refused
      work/replies/*.jsonl   every reply, by a hash of its request
      work/items/*.jsonl     every finished item with its records, by a hash of the item
      work/plans/*.jsonl     what was decided in mid run, by a hash of its name
      work/failures.jsonl    items that failed, why and when: tried again by the next call
      data/, dropped/        Parquet shards, written at the end (``data_gen.publish``)
      README.md, report.html, summary.json

An item is finished when its line is on disk, all its records in one line. A process that is killed
loses the requests in flight and nothing else: what was replied is never asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from data_gen.errors import UsageError
from data_gen.journal import Journal
from data_gen.records import Record, content_hash

_JOB = "job.json"


class Store:
    """The folder of one data set in the making; open it with ``with``."""

    def __init__(self, folder: str | Path, job: Mapping[str, Any]) -> None:
        """Take the folder for this job.

        Raises UsageError where it holds another job, something else, or is in use.
        """
        self.folder = Path(folder)
        self._job = json.loads(json.dumps(job, sort_keys=True, default=str))
        self._lock: IO[bytes] | None = None
        self._check()

    def __enter__(self) -> Store:
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        self._lock = (work / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(f"{self.folder} is being written by another process") from None
        write_json(self.folder / _JOB, self._job)
        self.replies = Journal(work / "replies")
        self.items = Journal(work / "items")
        self.plans = Journal(work / "plans")
        return self

    def __exit__(self, *_: object) -> None:
        self.replies.close()
        self.items.close()
        self.plans.close()
        if self._lock is not None:
            self._lock.close()

    def finish(self, key: str, records: Sequence[Record]) -> None:
        """An item is done."""
        self.items.put(key, [record.row() for record in records])

    def once(self, name: str, decide: Callable[..., Any], *args: Any) -> Any:
        """What was decided under ``name``, a JSON value; decided and written down if not yet."""
        key = content_hash(name)
        if key not in self.plans:
            self.plans.put(key, decide(*args))
        return self.plans.get(key)

    def fail(self, key: str, reason: str) -> None:
        """An item could not be done; the next call tries it again."""
        line = {"key": key, "reason": reason, "time": time.time()}
        with (self.folder / "work" / "failures.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rows(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of the finished items among ``keys``, in that order, one item at a time."""
        for key in keys:
            if key in self.items:
                yield from self.items.get(key)

    def _check(self) -> None:
        kept = self.folder / _JOB
        if kept.is_file():
            before = json.loads(kept.read_text())
            if before != self._job:
                raise UsageError(
                    f"{self.folder} holds another job: {_difference(before, self._job)}"
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} exists and is not empty: choose another folder")


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return "; ".join(changed)[:1000] + ". Choose another folder, or ask for the same"
