"""Files of JSON lines that survive ``kill -9``.

A line is handed to the kernel whole before ``append`` returns, so the death of this process loses
at most the line it was writing. Such a torn last line is cut off before the next append (it would
otherwise swallow the line after it), and readers skip and count what doesn't parse. ``append``
does not fsync: a power cut may lose the last lines; whatever must outlive one is written by
``replace_file``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16


class JsonLines:
    """One writer of one file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = _size_without_torn_line(self._fd)
        os.ftruncate(self._fd, self._size)

    def append(self, record: Any) -> None:
        """Write one line. Raises OSError (disk full) and then leaves the file as it was."""
        data = to_json(record).encode() + b"\n"
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def to_json(record: Any) -> str:
    """Compact JSON: numpy scalars become numbers; lone surrogates are escaped, so it encodes."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text if _encodes(text) else json.dumps(record, separators=(",", ":"), default=_plain)


def finite(record: Any) -> Any:
    """The same tree with NaN and infinities as None: only Python's JSON readers take them."""
    if isinstance(record, Mapping):
        return {str(key): finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    if hasattr(record, "item"):  # a numpy scalar
        record = record.item()
    return None if isinstance(record, float) and not math.isfinite(record) else record


def read_lines(path: Path) -> tuple[list[Any], int]:
    """All records of the file, and how many lines did not parse. A missing file has none."""
    records: list[Any] = []
    bad = 0
    for line in _lines(path):
        try:
            records.append(json.loads(line))
        except ValueError:
            bad += 1
    return records, bad


def replace_file(path: Path, data: bytes | Sequence[bytes]) -> None:
    """Make ``path`` hold exactly ``data``, on disk, or leave it as it was."""
    chunks = [data] if isinstance(data, bytes) else data
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        yield from file


def _size_without_torn_line(fd: int) -> int:
    """Bytes up to and including the last line break."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r:.80} can't be written as JSON")
