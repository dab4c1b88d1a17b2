"""Decides how what outgrows memory is kept: keyed numbers grouped by key, and records by number.

Both are for stages over any number of documents with a stated bound on memory.

``KeyFile``  (key, number) pairs; afterwards the numbers of every key. Pairs are written as they
             come, dealt out by hash range into parts that fit the bound, and each part is sorted
             alone: an external distribution sort (Knuth, TAOCP 3, 5.4), which hashes make even
``Records``  byte strings of any length, read back by number; memory: one write buffer
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pretrain.errors import UsageError

Hashes = npt.NDArray[np.uint64]

_PAIR = 16  # bytes: key and number
_SORTED = 4  # copies of a part while it is sorted, its order included
_MOST_PARTS = 512  # open files at a time


class KeyFile:
    """Pairs of a 64-bit hash and a 64-bit number, on disk, sorted in ``memory`` bytes."""

    def __init__(self, folder: Path, *, memory: int):
        folder.mkdir()
        self._folder, self._memory = folder, memory
        self._all = (folder / "all").open("w+b")

    def add(self, keys: Hashes, numbers: Hashes) -> None:
        pairs = np.empty((len(keys), 2), np.uint64)
        pairs[:, 0], pairs[:, 1] = keys, numbers
        self._all.write(pairs.tobytes())

    def repeated(self) -> Iterator[tuple[Hashes, Hashes]]:
        """(keys, numbers) by hash range: only keys that occur at least twice, sorted by key and,
        within one, in the order they were added. Raises UsageError where the bound is too tight.
        """
        for path in self._parts():
            pairs = np.fromfile(path, np.uint64).reshape(-1, 2)
            order = np.argsort(pairs[:, 0], kind="stable")
            keys, numbers = pairs[order, 0], pairs[order, 1]
            same = keys[1:] == keys[:-1]
            twice = np.r_[False, same] | np.r_[same, False] if len(keys) else same
            yield keys[twice], numbers[twice]
            path.unlink()

    def _parts(self) -> list[Path]:
        self._all.close()
        path = self._folder / "all"
        needed = -(-path.stat().st_size * _SORTED // self._memory)
        bits = max(0, int(needed - 1).bit_length())
        if 2**bits > _MOST_PARTS:
            least = path.stat().st_size * _SORTED // _MOST_PARTS // 2**20 + 1
            raise UsageError(f"memory_mb must be at least {least} for this many documents")
        if bits == 0:
            return [path]
        parts = [self._folder / f"{i:03d}" for i in range(2**bits)]
        files = [part.open("wb") for part in parts]
        for pairs in _chunks(path, self._memory // _SORTED // 2):
            part_of = (pairs[:, 0] >> np.uint64(64 - bits)).astype(np.intp)
            order = np.argsort(part_of, kind="stable")
            ends = np.cumsum(np.bincount(part_of, minlength=len(files)))
            for file, one in zip(files, np.split(pairs[order], ends[:-1]), strict=True):
                file.write(one.tobytes())
        for file in files:
            file.close()
        path.unlink()
        return parts


def _chunks(path: Path, size: int) -> Iterator[Hashes]:
    with path.open("rb") as file:
        while len(chunk := np.fromfile(file, np.uint64, max(1, size // _PAIR) * 2)):
            yield chunk.reshape(-1, 2)


def groups(keys: Hashes, numbers: Hashes) -> list[Hashes]:
    """The numbers of each key, keys being sorted."""
    starts = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    return np.split(numbers, starts) if len(keys) else []


class Records:
    """Byte strings on disk, in the order they were appended."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._data, self._ends = (folder / "data").open("w+b"), (folder / "ends").open("w+b")
        self._ends.write((0).to_bytes(8, "little"))
        self._end = self._count = self._flushed = 0

    def __len__(self) -> int:
        return self._count

    def append(self, record: bytes) -> None:
        self._data.write(record)
        self._end += len(record)
        self._ends.write(self._end.to_bytes(8, "little"))
        self._count += 1

    def __getitem__(self, number: int) -> bytes:
        self._flush()
        bounds = os.pread(self._ends.fileno(), 16, 8 * number)
        start, end = int.from_bytes(bounds[:8], "little"), int.from_bytes(bounds[8:], "little")
        return os.pread(self._data.fileno(), end - start, start)

    def span(self, start: int, length: int) -> bytes:
        """Some bytes of all records in a row."""
        self._flush()
        return os.pread(self._data.fileno(), length, start)

    def _flush(self) -> None:
        if self._flushed < self._count:
            self._data.flush()
            self._ends.flush()
            self._flushed = self._count
