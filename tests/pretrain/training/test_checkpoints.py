"""Checkpoints while training goes on: slow writes, death inside one, and a disk that is full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.shards import Shards
from pretrain.errors import RunError
from pretrain.training import checkpoints
from pretrain.training.checkpoints import Checkpoints, step_of, written
from tests.pretrain.training.small_run import (
    WEIGHTS,
    as_command,
    config,
    trained,
    wait_for_steps,
)


def steps_on_disk(out: Path) -> list[int]:
    return [step_of(path) for path in written(out / "checkpoints")]


def test_steps_go_on_while_a_checkpoint_is_written(
    whole: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is written is the state of its own step, not of those that came meanwhile."""
    out, write = tmp_path / "run", checkpoints.write_rank
    seen: list[list[int]] = []

    def slowly(folder: Path, rank: int, held: Mapping[Path, Any]) -> None:
        if folder.name == "step-00000004.tmp":
            wait_for_steps(out, 7)
            seen.append(steps_on_disk(out))
        write(folder, rank, held)

    monkeypatch.setattr(checkpoints, "write_rank", slowly)
    trained(shards, out, checkpoint__keep_last=4)
    assert seen == [[0]]  # it had not appeared under its name before it was whole
    assert steps_on_disk(out) == [0, 4, 8, 12]
    for step in (8, 12):
        shutil.rmtree(out / f"checkpoints/step-{step:08d}")
    trained(shards, out, checkpoint__keep_last=4)  # from step 4
    assert (out / "final" / WEIGHTS).read_bytes() == (whole / "final" / WEIGHTS).read_bytes()


DIES = """
import os, signal, sys
from pretrain.cli import main
from pretrain.training import checkpoints

def dying(real):
    def call(*paths):
        if str(paths[0]).endswith(("step-00000008.tmp", "step-00000008.tmp/checkpoint.json")):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*paths)
    return call

where, name = sys.argv[1].split(".")
target = checkpoints.os if where == "os" else checkpoints
setattr(target, name, dying(getattr(target, name)))
main(["train", *sys.argv[2:]])
"""


def test_killed_inside_a_write_the_checkpoint_before_is_taken(
    whole: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the rank's files written and no manifest; and with one, before the folder's name."""
    cuts = {"checkpoints.write_whole": False, "os.replace": True}
    dying = {}
    for where in cuts:
        folder = tmp_path / where
        folder.mkdir()
        arguments = as_command(config(shards, folder / "run"), folder)
        command = [sys.executable, "-c", DIES, where, *arguments]
        dying[where] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for where, process in dying.items():
        _, said = process.communicate(timeout=280)
        assert process.returncode == -signal.SIGKILL, said[-3000:]
        out = tmp_path / where / "run"
        half = out / "checkpoints" / "step-00000008.tmp"
        assert steps_on_disk(out) == [0, 4]
        assert (half / "checkpoint.json").exists() == cuts[where]
        trained(shards, out)
        assert "step-00000004, step 4" in capsys.readouterr().err
        assert not half.exists()
        assert (out / "final" / WEIGHTS).read_bytes() == (whole / "final" / WEIGHTS).read_bytes()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "checkpoints", 0, 1, 2)
    weights = {"weight": torch.zeros(3 << 18)}  # 3 MiB

    def save(step: int, **links: str) -> None:
        aside = saved.aside(step)
        checkpoints.clear(aside)
        for name, target in links.items():
            (aside / name).symlink_to(target)
        saved.save(step, {aside / "first": weights, aside / "second": weights}, {"step": step})
        saved.settle()

    save(4)
    with pytest.raises(RunError) as caught:
        save(8, second="/dev/full")  # where the kernel has no space left
    assert "checkpoint 8 could not be written: rank 0: the disk is full (" in str(caught.value)
    assert "MiB free in" in str(caught.value) and "6.0 MiB to write" in str(caught.value)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert step_of(kept) == 4 and checkpoints.fault_of(kept) == ""


def test_a_full_disk_under_the_records_is_named_too(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full \(.* MiB free in .*run\)"):
        trained(shards, out)


def test_a_disk_that_is_gone_is_said_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for its free space fails, too."""
    saved = Checkpoints(tmp_path / "checkpoints", 0, 1, 2)
    aside = saved.aside(4)
    checkpoints.clear(aside)
    (aside / "a").symlink_to("/dev/full")

    def gone(_: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(shutil, "disk_usage", gone)
    saved.save(4, {aside / "a": torch.zeros(1 << 16)}, {})
    with pytest.raises(RunError, match=r"the disk is full \(nothing known \(Stale file handle\)"):
        saved.settle()


def test_rank_0_hears_of_another_ranks_disk(tmp_path: Path) -> None:
    first, second = (Checkpoints(tmp_path, rank, 2, 2) for rank in range(2))
    aside = first.aside(4)
    checkpoints.clear(aside)
    (aside / "b").symlink_to("/dev/full")
    first.save(4, {aside / "a": torch.zeros(1 << 16)}, {})
    second.save(4, {aside / "b": torch.zeros(1 << 16)}, {})
    second.settle()
    with pytest.raises(RunError, match="rank 1: the disk is full"):
        first.settle()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_write_goes_on_when_it_can(
    whole: Path, shards: Shards, tmp_path: Path
) -> None:
    """The limit on the size of files fails where a full disk would, inside of torch's writer."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(RunError, match="checkpoint 4 could not be written: rank 0: File too"):
            trained(shards, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000000"]
    trained(shards, out)
    assert (out / "final" / WEIGHTS).read_bytes() == (whole / "final" / WEIGHTS).read_bytes()
