"""What a run goes on from: the learner's state and the number of steps done, written atomically.

    checkpoints/step-000025/learner/   DeepSpeed's files: weights, optimiser, scheduler, RNG
    checkpoints/step-000025/loop.json  written last; a folder without it is not a checkpoint

Everything else a resume needs is a function of the step (tasks, seeds) or lies in the run directory
already: the rollouts of the steps after the checkpoint are trained on again from disk, in order, so
that each counts once in the weights and none is generated twice.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from posttrain.types import Learner
from posttrain.waits import waiting

_MARK = "loop.json"


async def save_checkpoint(folder: Path, step: int, learner: Learner, keep: int) -> Path:
    """Write the state after ``step`` optimiser steps, then drop all but the newest ``keep``."""
    target = folder / f"step-{step:06d}"
    if (target / _MARK).exists():
        return target
    aside = folder / f"{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with waiting(f"checkpoint {step}", owner="learner"):
        await learner.save(aside / "learner")
    mark = aside / _MARK
    mark.write_text(json.dumps({"step": step, "world_size": learner.world_size}))
    _flush(aside)
    if target.exists():  # a folder without its mark
        shutil.rmtree(target)
    os.replace(aside, target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-??????/{_MARK}"))


def checkpoint_step(path: Path) -> int:
    """How many optimiser steps a checkpoint has behind it."""
    return int(json.loads((path / _MARK).read_text())["step"])


def _flush(folder: Path) -> None:
    """Everything below ``folder`` is on the disk, not only in the page cache, before the rename."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
