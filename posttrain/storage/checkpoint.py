"""What a run goes on from: the state after some optimiser steps, checked, and written atomically.

    checkpoints/step-000025/learner/         each rank's files (learner/state.py)
    checkpoints/step-000025/checkpoint.json  written last: step, weight version, what the buffer
                                             held, and size and SHA-256 of every file

A folder without ``checkpoint.json`` is not a checkpoint. The learner's ranks write into a folder
aside, while the next step runs; when all of them are through, the folder gets its manifest and its
name. At most one is on the way. A resume takes the newest checkpoint whose files are all as they
were written; one that is damaged is renamed to ``step-000025.damaged`` and told.

Everything else a resume needs is a function of the step (tasks, seeds) or lies in the run directory
already: the rollouts of the steps after the checkpoint are trained on again from disk, in order, so
that each counts once in the weights, and prompts whose rollouts were under way are played again
from their seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import KeepSettings
from posttrain.errors import RunError
from posttrain.storage.checked_files import fault_of, take_manifests
from posttrain.storage.jsonl import replace_file, sync_folder
from posttrain.types import Learner
from posttrain.waits import waiting

_MANIFEST = "checkpoint.json"
_LEARNER = "learner"
_CLOSE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts: a checkpoint's learner state, or the model itself."""

    step: int = 0
    learner: Path | None = None
    notes: tuple[str, ...] = ()  # what was found damaged on the way, and how


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first; their files are not looked at."""
    return sorted(path.parent for path in folder.glob(f"step-??????/{_MANIFEST}"))


def checkpoint_step(path: Path) -> int:
    """How many optimiser steps a checkpoint has behind it."""
    return int(path.name.removeprefix("step-"))


def find_start(folder: Path) -> Start:
    """The newest checkpoint that is as it was written; step 0 where none was ever written.

    Damaged ones are set aside, and what a killed run left half-written is removed. Raises RunError
    when there are checkpoints and all are damaged: then nothing is touched.
    """
    damaged: dict[Path, str] = {}
    found = None
    for path in reversed(list_checkpoints(folder)):
        fault = _fault(path)
        if not fault:
            found = path
            break
        damaged[path] = fault
    told = [f"checkpoint {path.name} is damaged: {fault}" for path, fault in damaged.items()]
    if damaged and found is None:
        raise RunError(
            f"{folder.parent} can't be resumed, every checkpoint is damaged:\n"
            + "\n".join(told)
            + f"\nBring one back from a backup, or remove {folder} to train again from the start"
        )
    for path in damaged:
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if found is None and (old := sorted(folder.glob("step-*/loop.json"))):
        raise RunError(
            f"{folder.parent} can't be resumed: {old[-1].parent.name} was written by an older "
            f"version, whose checkpoints are not read. Remove {folder} to train again"
        )
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)
    if found is None:
        return Start()
    notes = tuple(f"{text}; going on from {found.name} instead" for text in told)
    return Start(checkpoint_step(found), found / _LEARNER, notes)


def _fault(path: Path) -> str:
    """What is wrong with a checkpoint; "" when nothing is."""
    try:
        files = json.loads((path / _MANIFEST).read_text())["files"]
        return fault_of(path / _LEARNER, files)
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"{_MANIFEST} can't be read ({error!r})"


@dataclass(slots=True)
class Checkpoints:
    """Saves a run's checkpoints, one at a time, and drops those that need not be kept.

    ``accuracies`` gives what best is by, after some steps; ``describe`` what the loop held.
    """

    folder: Path
    keep: KeepSettings
    learner: Learner
    accuracies: Callable[[], Mapping[int, float]]
    describe: Callable[[int], Mapping[str, Any]]
    _writing: asyncio.Task[None] | None = None
    _step: int = -1  # of the one last begun

    async def save(self, step: int) -> None:
        """Hold the state after ``step`` steps, and write it while the run goes on.

        Waits for the one before. Raises RunError when that could not be written.
        """
        await self.settle()
        target = self.folder / f"step-{step:06d}"
        if step == self._step or (target / _MANIFEST).exists():
            return
        # A name of its own: ranks of a killed run may still be writing into theirs.
        aside = self.folder / f"{target.name}.{secrets.token_hex(4)}.tmp"
        aside.mkdir(parents=True)
        with waiting(f"checkpoint {step}", owner="learner"):
            await self.learner.save(aside / _LEARNER)
        self._step = step
        manifest = {"step": step, "weight_version": step, **self.describe(step)}
        self._writing = asyncio.create_task(
            self._finish(aside, target, manifest), name=f"checkpoint {step}"
        )

    def check(self) -> None:
        """Raise what went wrong with a save since, without waiting for it."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    async def settle(self) -> None:
        """Wait until nothing is being written. Raises RunError when it could not be."""
        if self._writing is not None:
            await self._writing

    async def close(self) -> None:
        """Let a save that is under way come to its end, where the run ends by another error."""
        with contextlib.suppress(RunError, TimeoutError):
            await asyncio.wait_for(self.settle(), _CLOSE_TIMEOUT_S)

    async def _finish(self, aside: Path, target: Path, manifest: dict[str, Any]) -> None:
        try:
            await self.learner.saved(aside / _LEARNER)
            await asyncio.to_thread(_commit, aside, target, manifest)
        except (RunError, OSError) as error:
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
            raise RunError(
                f"{error}\nThe checkpoint after step {manifest['step']} was given up, those "
                f"before it are whole; go on from there with: posttrain resume {self.folder.parent}"
            ) from error
        await asyncio.to_thread(self.prune)

    def prune(self) -> None:
        """Drop what is neither among the newest nor among the most accurate."""
        saved = list_checkpoints(self.folder)
        kept = set(saved[-self.keep.last :])
        if self.keep.best:
            accuracy = self.accuracies()
            measured = [path for path in saved if checkpoint_step(path) in accuracy]
            measured.sort(key=lambda path: (accuracy[checkpoint_step(path)], path.name))
            kept |= set(measured[-self.keep.best :])
        for path in saved:
            if path not in kept:
                gone = path.rename(path.with_name(f"{path.name}.tmp"))  # half-removed, it is none
                shutil.rmtree(gone)


def _commit(aside: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Give the folder its manifest and its name, both durable."""
    manifest["files"] = take_manifests(aside / _LEARNER)
    replace_file(aside / _MANIFEST, json.dumps(manifest, indent=1).encode())
    sync_folder(aside)
    if target.exists():  # without its manifest, or it would not be written again
        shutil.rmtree(target)
    os.replace(aside, target)
    sync_folder(target.parent)
