"""A run that cannot be lost: its processes are killed at random times, its disk fills up.

Each fault ends in the same assertion: the run that went on afterwards has the weights, bit for bit,
and the rollouts of one that nothing happened to. 20 seeded points in all: 15 kills of the
orchestrator and 3 of a learner rank here, 2 of a rollout server in test_main_job.py.

The jobs are forked from a server that has paid for the imports once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from posttrain.storage.checkpoint import checkpoint_step, list_checkpoints
from posttrain.storage.run_dir import RunDir
from tests.posttrain import forked_jobs, small_job
from tests.posttrain.documented import undocumented

STEPS = 24
SETTINGS = {"checkpoint": {"every": 2}, "evaluation": {"tasks": 3, "every": 4}, "steps": STEPS}
RANK = {"ranks": 1}
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def fork() -> Iterator[multiprocessing.context.BaseContext]:
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    context = multiprocessing.get_context("forkserver")
    preloaded = [forked_jobs.__name__, "deepspeed", "transformers", "posttrain.learner.learner"]
    context.set_forkserver_preload(preloaded)
    yield context
    os.environ.clear()
    os.environ |= before


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # or a zombie by now
        return []


class Life:
    """One process of a run, from its start to its end."""

    def __init__(self, fork, model: Path, run_dir: Path, *, job="small", **settings) -> None:
        self.run_dir, self.log = run_dir, run_dir.parent / f"{run_dir.name}.log"
        arguments = (self.log, job, str(model), str(run_dir), settings)
        self.process = fork.Process(target=forked_jobs.run, args=arguments)
        self.began = time.time()
        self.process.start()
        self.family: set[psutil.Process] = set()

    def until(self, steps: int, seconds: float = 100.0) -> None:
        """Until this process has told so many steps, or has ended."""
        deadline = time.monotonic() + seconds
        while self.steps() < steps and self.process.is_alive():
            assert time.monotonic() < deadline, f"no {steps} steps: {self.log.read_text()}"
            time.sleep(0.005)

    def steps(self) -> int:
        records = RunDir(self.run_dir).read_metrics()
        return sum(r["kind"] == "step" and r["time"] > self.began for r in records)

    def find(self, word: str, seconds: float = 60.0) -> psutil.Process | None:
        """A descendant whose command line has the word; None once the job is over."""
        deadline = time.monotonic() + seconds
        while self.process.is_alive():
            for child in self.children():
                command = _command(child)
                if word in " ".join(command) and "process_guard" not in " ".join(command[:4]):
                    return child
            assert time.monotonic() < deadline, f"no process with {word!r}"
            time.sleep(0.02)
        return None

    def children(self) -> set[psutil.Process]:
        try:
            found = set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            found = set()
        self.family |= found
        return found

    def end(self, seconds: float = 100.0) -> int:
        """The exit status, after which nothing of it may be left."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it does not end: {self.log.read_text()}"
        _, alive = psutil.wait_procs(self.family, timeout=10)
        assert alive == [], f"left behind: {[child.cmdline() for child in alive]}"
        return self.process.exitcode


def outcome(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[tuple]]:
    """The weights at the end, and every rollout with the ids it was trained on."""
    run = RunDir.open(run_dir)
    steps = [r["step"] for r in run.read_metrics() if r["kind"] == "step"]
    assert steps == list(range(STEPS))  # each is told once
    rollouts = [
        (rollout.rollout_id, rollout.turns[-1].completion.token_ids.tolist())
        for step in run.rollouts.sealed_steps()
        for group in run.load_step(step)
        for rollout in group.rollouts
    ]
    return load_file(run_dir / "model/model.safetensors"), rollouts


def assert_same(run_dir: Path, whole: tuple) -> None:
    weights, rollouts = outcome(run_dir)
    assert [name for name in whole[0] if not torch.equal(weights[name], whole[0][name])] == []
    assert rollouts == whole[1]
    assert len({name for name, _ in rollouts}) == len(rollouts) == STEPS * 12
    left = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert left == {f"step-{STEPS - 2:06d}", f"step-{STEPS:06d}"}, "something half-written"


@pytest.fixture(scope="module")
def whole_run(fork, checkpoint, tmp_path_factory) -> Path:
    """A run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    life = Life(fork, checkpoint, run_dir, **SETTINGS)
    assert life.end() == 0, life.log.read_text()
    return run_dir


@pytest.fixture(scope="module")
def whole(whole_run) -> tuple:
    return outcome(whole_run)


def test_the_run_that_all_are_compared_with_has_learnt(checkpoint, whole_run, whole) -> None:
    start = load_file(checkpoint / "model.safetensors")
    assert any(not torch.equal(start[name], whole[0][name]) for name in start)
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["engine"] == "embedded"
    assert summary["syncs_verified"] == STEPS + 1  # the start, and one for each step
    assert (whole_run / "report.html").stat().st_size > 10_000
    assert undocumented(whole_run) == set()


def to_begin(run_dir: Path) -> dict:
    """The settings of a run that may be there already, and then needs none."""
    return {} if (run_dir / "config.json").exists() else SETTINGS


def test_an_orchestrator_killed_15_times(fork, checkpoint, whole, tmp_path) -> None:
    """All in one run; where that ends before its next kill, another one takes the rest."""
    chance, run_dir = random.Random(15), tmp_path / "run-0"
    in_training = kills = 0
    while kills < 15:
        life = Life(fork, checkpoint, run_dir, **to_begin(run_dir))
        steps = chance.randrange(4)
        life.until(steps)
        time.sleep(chance.random() * (0.2 if steps else 2.0))  # 0: at the start, with the imports
        life.process.kill()
        if life.end() == -signal.SIGKILL:
            kills += 1
            in_training += life.steps() > 0
        else:
            assert_same(run_dir, whole)
            run_dir = tmp_path / f"run-{kills}"
    assert in_training >= 8
    last = Life(fork, checkpoint, run_dir, **to_begin(run_dir))
    assert last.end() == 0, last.log.read_text()
    assert_same(run_dir, whole)


def test_a_learner_rank_killed_3_times(fork, checkpoint, whole, tmp_path) -> None:
    """The run stops at once and says how to go on; the last life is inline, the bits the same."""
    chance, run_dir = random.Random(3), tmp_path / "run"
    settings = SETTINGS | {"learner": small_job.DEFAULTS["learner"] | RANK}
    for steps in (0, 1, 2):
        life = Life(fork, checkpoint, run_dir, **settings)
        rank = life.find("posttrain.learner.rank")
        life.until(steps)
        time.sleep(chance.random() * 0.2)
        life.children()
        rank.kill()
        assert life.end(30) == 1, life.log.read_text()
        assert f"posttrain resume {run_dir}" in life.log.read_text()
        settings = {}
    last = Life(fork, checkpoint, run_dir, learner={"ranks": 0})
    assert last.end() == 0, last.log.read_text()
    assert_same(run_dir, whole)
    (change,) = RunDir.open(run_dir).manifest()["changes"]
    ranks = {"before": 1, "after": 0}
    assert change["settings"] == {"learner.ranks": ranks}


def test_a_truncated_checkpoint_is_told_and_the_one_before_used(
    fork, checkpoint, whole_run, whole, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    newest = list_checkpoints(run_dir / "checkpoints")[-1]
    (state,) = newest.rglob("*model_states.pt")
    os.truncate(state, state.stat().st_size - 100)
    (run_dir / f"rollouts/step-{STEPS - 1:06d}.parquet").write_bytes(b"not Parquet any more")
    life = Life(fork, checkpoint, run_dir)
    assert life.end() == 0, life.log.read_text()
    told = [r["text"] for r in RunDir.open(run_dir).read_metrics() if r.get("event") == "damaged"]
    assert len(told) == 2
    assert f"step-{STEPS:06d} is damaged" in told[0]
    assert f"going on from step-{STEPS - 2:06d}" in told[0]
    assert f"step-{STEPS - 1:06d}.parquet is damaged" in told[1]
    assert all(text[:30] in life.log.read_text() for text in told)
    shutil.rmtree(run_dir / f"checkpoints/step-{STEPS:06d}.damaged")  # it was set aside
    assert_same(run_dir, whole)


def test_a_finished_run_goes_on_longer_and_on_other_ranks(
    fork, checkpoint, whole_run, whole, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    elsewhere = {"ranks": 2, "zero_stage": 2}
    changes = {"steps": STEPS + 2, "learner": elsewhere, "checkpoint": {"keep": {"best": 1}}}
    life = Life(fork, checkpoint, run_dir, **changes)
    assert life.end() == 0, life.log.read_text()
    run = RunDir.open(run_dir)
    steps = [r["step"] for r in run.read_metrics() if r["kind"] == "step"]
    assert steps == list(range(STEPS + 2))
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == STEPS + 2
    for step in range(STEPS):
        assert run.load_step(step) is not None
    accuracy = run.accuracies()
    left = {checkpoint_step(path) for path in list_checkpoints(run.checkpoints)}
    saved = (STEPS - 2, STEPS, STEPS + 2)
    best = max((s for s in saved if s in accuracy), key=lambda s: (accuracy[s], s))
    assert left == {STEPS, STEPS + 2, best}
    newest = run.checkpoints / f"step-{STEPS + 2:06d}" / "learner"
    about = json.loads((newest / "learner.json").read_text())
    assert (about["world_size"], about["zero_stage"]) == (2, 2)
    assert about["progress"] == {"updates": STEPS + 2}
    settings = run.manifest()["changes"][0]["settings"]
    assert settings["learner.ranks"] == {"before": 0, "after": 2}


# the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    # lazily: tensors that were read from there may still be mapped
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_costs_nothing(
    fork, checkpoint, whole, tmp_path, small_disk
) -> None:
    run_dir = small_disk / "run"
    life = Life(fork, checkpoint, run_dir, **SETTINGS)
    while not list_checkpoints(run_dir / "checkpoints") and life.process.is_alive():
        time.sleep(0.005)
    fill(small_disk / "ballast", leave=700_000)  # a checkpoint is 1.2 MB, published weights 0.4
    assert life.end() == 1, life.log.read_text()
    log = life.log.read_text()
    assert "No space left on device" in log and f"posttrain resume {run_dir}" in log
    saved = list_checkpoints(run_dir / "checkpoints")
    assert saved and checkpoint_step(saved[-1]) < STEPS
    assert [path.suffix for path in (run_dir / "checkpoints").iterdir()] == [""] * len(saved)
    (small_disk / "ballast").unlink()
    again = Life(fork, checkpoint, run_dir)
    assert again.end() == 0, again.log.read_text()
    assert_same(run_dir, whole)


def fill(path: Path, leave: int) -> None:
    def room() -> int:
        found = os.statvfs(path.parent)
        return found.f_bavail * found.f_frsize - leave

    with path.open("wb", buffering=0) as file:  # in pieces: others write meanwhile
        while (left := room()) > 0:
            file.write(bytes(min(left, 64_000)))


# rewards that hang


@pytest.mark.parametrize("judge", ["plain", "async", "environment"])
def test_a_judge_that_hangs_costs_its_samples_and_nothing_else(
    fork, checkpoint, tmp_path, judge
) -> None:
    settings = {"steps": 4, "prompts_per_step": 4, "group_size": 2, "episode_timeout_s": 2.0}
    settings |= {"evaluation": {"tasks": 0}, "max_invalid_share": 0.9, "judge": judge}
    life = Life(fork, checkpoint, tmp_path / "run", job="hanging", **settings)
    assert life.end(60) == 0, life.log.read_text()  # no thread holds the process
    run = RunDir.open(tmp_path / "run")
    assert run.rollouts.sealed_steps() == [0, 1, 2, 3]
    hung = 0
    for rollout in (r for step in range(4) for g in run.load_step(step) for r in g.rollouts):
        hangs = forked_jobs.HANGS in rollout.messages[0]["content"]
        assert (rollout.score.outcome == "timeout") == (rollout.score.value is None) == hangs
        hung += hangs
    assert hung > 0
    masked = [r["invalid_samples"] for r in run.read_metrics() if r["kind"] == "step"]
    assert sum(masked) == hung
