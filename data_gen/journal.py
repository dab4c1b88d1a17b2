"""Append-only files of finished work, so that nothing that was paid for is asked twice.

A journal is a folder of JSON lines, each ``{"key": ..., "value": ...}``. A process appends to a
file of its own and flushes every line; a line that is torn, because its writer was killed, is
skipped when read. Memory holds where each value stands (some 200 bytes a line), not the value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_encode = json.JSONEncoder(ensure_ascii=False).encode  # ``json.dumps`` makes one at each call


class Journal:
    """Values by key. One process appends; see ``data_gen.store`` for the lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = sorted(folder.glob("*.jsonl"))
        self._place: dict[bytes, tuple[int, int]] = {}  # key -> (file, offset)
        self._readers: dict[int, IO[bytes]] = {}
        self.torn = 0  # lines that could not be read
        for number, path in enumerate(self._files):
            self._index(number, path)
        last = int(self._files[-1].stem) + 1 if self._files else 0
        self._files.append(folder / f"{last:05d}.jsonl")
        self._writer: IO[bytes] | None = None  # opened at the first line
        self._end = 0  # of the file that is written

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return _packed(key) in self._place

    def get(self, key: str) -> Any:
        """The value under ``key``. Raises KeyError."""
        number, offset = self._place[_packed(key)]
        if number not in self._readers:
            self._readers[number] = self._files[number].open("rb")
        reader = self._readers[number]
        reader.seek(offset)
        return json.loads(reader.readline())["value"]

    def put(self, key: str, value: Any) -> None:
        """Append; a key that is there already gets the new value. Raises OSError on a full disk."""
        line = _encode({"key": key, "value": value}).encode() + b"\n"
        number = len(self._files) - 1
        if self._writer is None:
            self._writer = self._files[number].open("ab")
        offset, self._end = self._end, self._end + len(line)
        self._writer.write(line)
        self._writer.flush()
        self._place[_packed(key)] = (number, offset)

    def keys(self) -> Iterator[str]:
        return (key.hex() for key in self._place)

    def close(self) -> None:
        for file in (*self._readers.values(), *([self._writer] if self._writer else ())):
            file.close()
        self._readers.clear()
        if self._writer is not None:
            with self._files[-1].open("rb") as written:
                os.fsync(written.fileno())
            self._writer = None

    def _index(self, number: int, path: Path) -> None:
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                key = _key_of(line)
                if key is None:
                    self.torn += 1
                else:
                    self._place[key] = (number, offset)
                offset += len(line)


def _key_of(line: bytes) -> bytes | None:
    """The key of a whole line."""
    if not line.endswith(b"\n"):
        return None
    try:
        return _packed(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError):
        return None


def _packed(key: str) -> bytes:
    return bytes.fromhex(key)
