"""Decides what a run goes on from: the state after some steps, checked, and written atomically.

    checkpoints/step-00000500/engine/          the ranks' files (DeepSpeed's), random-N.pt
    checkpoints/step-00000500/checkpoint.json  written last: the loop's state, what must be the same
                                               in a run that resumes, size and SHA-256 of every file

All ranks write into ``step-00000500.tmp``; a thread of rank 0 waits for their marks, writes
``checkpoint.json`` and renames. So a folder under its name is whole, and nothing of it waits for
the disk but the next save. A checkpoint with a file that is not as it was written is set aside as
``step-00000500.damaged``, and the one before is taken. Of a save that fails, as on a full disk,
nothing stays, and the run stops at the next. Several machines need a shared file system.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.errors import RunError, UsageError
from pretrain.training.rank_files import (
    digest_of,
    failure,
    sync_folder,
    write_rank,
    write_whole,
)

MANIFEST, ENGINE = "checkpoint.json", "engine"
_DEADLINE_S = 1800.0
_POLL_S = 0.05


def written(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first; their files are not looked at."""
    return sorted(path.parent for path in folder.glob(f"step-????????/{MANIFEST}"))


def step_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("step-"))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Raises UsageError where there is none."""
    try:
        return dict(json.loads((checkpoint / MANIFEST).read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{checkpoint} is not a checkpoint: no {MANIFEST} ({error})") from error


def fault_of(checkpoint: Path) -> str:
    """What is wrong with the first file that is not as it was written; "" when all are well."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} can't be read ({error!r})"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or digest_of(path) != expected:
            return f"{name} differs from its checksum"
    return ""


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and what was found damaged on the way.

    Damaged ones are set aside. Raises RunError when there are checkpoints and all are damaged:
    then nothing is touched.
    """
    damaged: dict[Path, str] = {}
    found = None
    for path in reversed(written(folder)):
        if not (fault := fault_of(path)):
            found = path
            break
        damaged[path] = fault
    told = [f"checkpoint {path.name} is damaged: {fault}" for path, fault in damaged.items()]
    if damaged and found is None:
        raise RunError(
            "\n".join([*told, f"no checkpoint is whole: restore one, or remove {folder}"])
        )
    for path in damaged:
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return found, told


def clear(aside: Path) -> None:
    """Remove what a killed run left half-written."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def drop_newer(folder: Path, step: int) -> None:
    """After going back: what came later is of a past that did not happen."""
    for path in written(folder):
        if step_of(path) > step:
            _remove(path)


@dataclass(slots=True)
class Checkpoints:
    """One rank's side of saving."""

    folder: Path
    rank: int
    ranks: int
    keep_last: int
    keep_every: int = 0  # steps whose multiples are kept for good
    _thread: threading.Thread | None = field(default=None, init=False)
    _error: str = field(default="", init=False)

    def aside(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.tmp"

    def save(self, step: int, held: Mapping[Path, Any], about: Mapping[str, Any]) -> None:
        """Write what is held, in a thread; ``settle`` was called before.

        ``about`` becomes the manifest, with the files' checksums.
        """
        self._thread = threading.Thread(
            target=self._write, args=(step, held, about), name=f"checkpoint {step}", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Return when the last save has ended. Raises RunError when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error:
            raise RunError(f"{self._error}. Checkpoints before it are whole: {self.folder}")

    def _write(self, step: int, held: Mapping[Path, Any], about: Mapping[str, Any]) -> None:
        aside = self.aside(step)
        write_rank(aside, self.rank, held)
        if self.rank:
            return
        try:
            files = self._all_marks(aside)
            manifest = json.dumps({**about, "files": files}, indent=1)
            write_whole(aside / MANIFEST, manifest.encode())
            target = self.folder / f"step-{step:08d}"
            _remove(target)
            os.replace(aside, target)
            sync_folder(self.folder)
            for old in written(self.folder)[: -self.keep_last]:
                if not self.keep_every or step_of(old) % self.keep_every:
                    _remove(old)
        except (OSError, RunError) as error:
            why = error if isinstance(error, RunError) else failure(error, self.folder)
            self._error = f"checkpoint {step} could not be written: {why}"
            shutil.rmtree(aside, ignore_errors=True)

    def _all_marks(self, aside: Path) -> dict[str, Any]:
        """Raises RunError when all have ended and some have failed, or when one doesn't end."""
        deadline = time.monotonic() + _DEADLINE_S
        found: dict[str, Any] = {}
        failed: list[str] = []
        for rank in range(self.ranks):
            mark, error = aside / f"rank-{rank}.json", aside / f"rank-{rank}.error"
            while not (mark.exists() or error.exists()):
                if time.monotonic() > deadline:
                    raise RunError(f"rank {rank} did not write within {_DEADLINE_S:g} s")
                time.sleep(_POLL_S)
            if error.exists():
                failed.append(f"rank {rank}: {error.read_text()}")
            else:
                found |= json.loads(mark.read_text())
                mark.unlink()
        if failed:
            raise RunError("; ".join(failed))
        return found


def _remove(checkpoint: Path) -> None:
    """Half-removed, it is none."""
    if checkpoint.exists():
        gone = checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.old"))
        shutil.rmtree(gone)
