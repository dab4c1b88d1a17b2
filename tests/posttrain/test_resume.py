"""A killed run that is resumed ends in the same bits as one that was never interrupted."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.run_dir import RunDir
from tests import forked

JOB = Path(__file__).with_name("small_job.py")


def _start(checkpoint, run_dir):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(JOB), str(checkpoint), str(run_dir)]
    log = (run_dir.parent / f"{run_dir.name}.log").open("a")
    return forked.start(command, env=environment, stdout=log, stderr=log)


def _finish(checkpoint, run_dir):
    process = _start(checkpoint, run_dir)
    assert process.wait(timeout=240) == 0, (run_dir.parent / f"{run_dir.name}.log").read_text()


def _steps_done(run_dir):
    path = run_dir / "metrics.jsonl"
    return (
        path.read_text().count('"kind": "step"') + path.read_text().count('"kind":"step"')
        if path.exists()
        else 0
    )


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    _finish(checkpoint, run_dir)
    return run_dir


def _rollouts(run_dir):
    """Every rollout of a run, with the ids it was trained on."""
    run = RunDir.open(run_dir)
    return [
        (rollout.rollout_id, rollout.turns[-1].completion.token_ids.tolist())
        for step in run.rollouts.sealed_steps()
        for group in run.load_step(step)
        for rollout in group.rollouts
    ]


@pytest.mark.parametrize("point", [1, 2, 3])
def test_kill_9_then_resume_is_bit_identical(checkpoint, uninterrupted, tmp_path, point):
    choice = random.Random(point)
    run_dir = tmp_path / "run"
    process = _start(checkpoint, run_dir)
    after, delay = choice.randrange(1, 11), choice.random() * 0.3
    deadline = time.monotonic() + 120
    while _steps_done(run_dir) < after and process.poll() is None:
        assert time.monotonic() < deadline, f"no {after} steps within two minutes"
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    _finish(checkpoint, run_dir)

    whole, again = (
        load_file(uninterrupted / "model/model.safetensors"),
        load_file(run_dir / "model/model.safetensors"),
    )
    assert whole.keys() == again.keys()
    differing = [name for name in whole if not torch.equal(whole[name], again[name])]
    assert differing == [], f"killed {delay:.2f} s after step {after}"
    assert _rollouts(run_dir) == _rollouts(uninterrupted)
    steps = [r["step"] for r in RunDir.open(run_dir).read_metrics() if r["kind"] == "step"]
    assert steps == list(range(12))  # each step is told once


def test_training_changed_the_weights(checkpoint, uninterrupted):
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(uninterrupted / "model/model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["engine"] == "embedded"
    assert summary["syncs_verified"] == 13  # the start, and one for each step
    assert (uninterrupted / "report.html").stat().st_size > 10_000
