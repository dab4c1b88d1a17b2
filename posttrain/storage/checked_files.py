"""Files with checksums, and how a rank says that all of its files are on the disk.

    rank-0.writing    the rank is still writing; made before ``save`` answers, gone when it is done
    rank-0.json       size and SHA-256 of each of its files; written last
    rank-0.error      what went wrong instead, if there was room to say so

Decides what counts as written: fsynced, named in ``rank-N.json``, and ``rank-N.writing`` gone. A
rank that fails removes what it wrote; removing works on a full disk, too, so a failure is always
told. Light on purpose: the orchestrator waits here without torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from posttrain.errors import RunError
from posttrain.storage.jsonl import replace_file, sync_folder
from posttrain.waits import waiting

Digest = dict[str, Any]  # {"bytes": int, "sha256": str}
_POLL_S = 0.02
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckedFile:
    """A new file, hashed while it is written and on the disk when the block is left.

    ``write`` never raises: torch's writer of zip files would turn a full disk into an error about
    unexpected positions. The first error is kept and raised at the end of the block.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Every byte of ``data``; returns how many that is, also after an error."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += (size := len(view))
        try:
            while view and self._error is None:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""

    @property
    def digest(self) -> Digest:
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        with self._file:
            if self._error is not None:
                raise self._error
            os.fsync(self._file.fileno())


def digest_of(path: Path) -> Digest:
    """Of a file that is there."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": found.hexdigest()}


def fault_of(folder: Path, files: Mapping[str, Digest]) -> str:
    """What is wrong with the first file that is not as it was written; "" when all are well."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size} bytes of {expected['bytes']}"
        if digest_of(path) != expected:
            return f"{name} differs from its checksum"
    return ""


def is_full(error: BaseException) -> bool:
    """Whether it says that the disk, or a quota, has no room left."""
    return isinstance(error, OSError) and error.errno in _FULL


# one rank's side


def begin(folder: Path, rank: int) -> None:
    """Say that this rank is going to write below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, rank, "writing").touch()


def write_all(
    folder: Path, rank: int, files: Mapping[Path, Callable[[CheckedFile], object]]
) -> None:
    """Write the files, or none of them, and say which. Raises nothing: the marks tell."""
    written: dict[str, Digest] = {}
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with CheckedFile(path) as file:
                write(file)
            written[str(path.relative_to(folder))] = file.digest
        for parent in {path.parent for path in files}:
            sync_folder(parent)
        replace_file(_mark(folder, rank, "json"), json.dumps(written).encode())
    except Exception as error:  # noqa: BLE001  a boundary: this thread's caller reads the marks
        for path in files:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _mark(folder, rank, "error").write_text(f"{type(error).__name__}: {error}")
    finally:
        _mark(folder, rank, "writing").unlink(missing_ok=True)


# the orchestrator's side


async def all_written(
    folder: Path, ranks: int, *, gone: Callable[[], str], deadline_s: float
) -> None:
    """Wait for every rank that has begun. Raises RunError when one failed.

    ``gone`` says why nobody writes any more, or "".
    """
    deadline = time.monotonic() + deadline_s
    with waiting("a checkpoint on the disk", deadline_s=deadline_s, owner="learner"):
        while any(_mark(folder, rank, "writing").exists() for rank in range(ranks)):
            if why := gone():
                raise RunError(f"a checkpoint was not written to its end: {why}")
            if time.monotonic() > deadline:
                raise RunError(f"a checkpoint was not written within {deadline_s:g} s")
            await asyncio.sleep(_POLL_S)
    for rank in range(ranks):
        if not _mark(folder, rank, "json").exists():
            error = _mark(folder, rank, "error")
            why = error.read_text() if error.exists() else "it could not say why: a full disk?"
            raise RunError(f"learner rank {rank} could not write its part of a checkpoint: {why}")


def take_manifests(folder: Path) -> dict[str, Digest]:
    """What all ranks wrote, by path below ``folder``; their own lists are removed."""
    found: dict[str, Digest] = {}
    for path in sorted(folder.glob("rank-*.json")):
        found |= json.loads(path.read_text())
        path.unlink()
    return found


def _mark(folder: Path, rank: int, kind: str) -> Path:
    return folder / f"rank-{rank}.{kind}"
