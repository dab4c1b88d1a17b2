"""`posttrain status` on real runs, asked from another process; and the registry of waits alone."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrain import waits
from posttrain.cli import main
from posttrain.config import GrpoConfig, make_config
from posttrain.status import read_status
from posttrain.status_text import render
from posttrain.storage.run_dir import RunDir
from posttrain.storage.status_file import StatusFile
from posttrain.types import Group
from posttrain.waits import waiting
from tests import forked

JOB = Path(__file__).with_name("small_job.py")
QUICK = {"steps": 2, "evaluation": {"tasks": 0}}


def _start(checkpoint, run_dir, **settings):
    command = [sys.executable, str(JOB), str(checkpoint), str(run_dir), json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (run_dir.parent / "log").open("a")
    return forked.start(command, env=environment, stdout=log, stderr=log)


def _ask(run_dir):
    """What another process reads."""
    command = [sys.executable, "-m", "posttrain.cli", "status", str(run_dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _until(found, process, seconds=120):
    """Wait for a status for which ``found`` gives something, and return both."""
    deadline = time.monotonic() + seconds
    run_dir = Path(process.args[3])
    while True:
        status = read_status(run_dir) if (run_dir / "config.json").exists() else None
        if status and (result := found(status)):
            return status, result
        assert process.poll() is None, (run_dir.parent / "log").read_text()
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def _wait_named(status, name):
    return next((wait for wait in status["waits"] if wait["name"] == name), None)


# a registry alone


def test_a_kind_is_told_as_one_with_its_oldest():
    with (
        waiting("evaluation", owner="loop"),
        waiting("request 1", deadline_s=5.0, owner="a", many="requests"),
        waiting("request 2", deadline_s=9.0, owner="b", many="requests"),
    ):
        loop, requests = waits.snapshot()
    assert (loop["name"], loop["owner"], loop["count"]) == ("evaluation", "loop", 1)
    assert loop["deadline_s"] is None
    assert (requests["name"], requests["count"], requests["owner"]) == ("requests", 2, "a, b")
    assert (requests["oldest"], requests["deadline_s"]) == ("request 1", 5.0)
    assert waits.snapshot() == []


def test_a_wait_ends_with_its_block_however_that_ends():
    async def cancelled():
        with waiting("for ever"):
            await asyncio.sleep(100)

    async def run():
        task = asyncio.ensure_future(cancelled())
        await asyncio.sleep(0)
        assert [one["name"] for one in waits.snapshot()] == ["for ever"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    with pytest.raises(KeyError), waiting("broken"):
        raise KeyError
    assert waits.snapshot() == []


def test_waits_of_many_threads_are_all_there():
    inside, leave = threading.Barrier(17), threading.Event()

    def work(number):
        for _ in range(200):
            with waiting(f"short {number}"):
                pass
        with waiting(f"call {number}", many="calls"):
            inside.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=work, args=[i]) for i in range(16)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    (record,) = waits.snapshot()
    leave.set()
    for thread in threads:
        thread.join()
    assert record["count"] == 16
    assert waits.snapshot() == []


def test_a_wait_costs_less_than_20_microseconds():
    n, best = 5000, float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for i in range(n):
            with waiting(f"request {i}", deadline_s=1.0, owner="server", many="requests"):
                pass
        best = min(best, (time.perf_counter() - began) / n)
    assert best < 20e-6, f"{best * 1e6:.1f} us"


# the run directory


def test_steps_that_wait_for_the_learner_are_named(tmp_path):
    config = GrpoConfig.model_validate({"model": "m", "env": "e", "grpo": {"prompts_per_step": 2}})
    with RunDir.create(tmp_path / "run", config) as run:
        for step in (3, 4, 5):
            run.seal_step(step, [])
        run.append_group(Group(6, 0, ()))
        run.log({"kind": "step", "step": 3, "engine_idle_share": 0.25, "learner_idle_share": 0.5})
        status = read_status(tmp_path / "run")
    assert status["full_steps"] == [4, 5]
    assert status["open_steps"] == [{"step": 6, "groups_finished": 1, "groups": 2}]
    text = render(status | {"state": "running"})
    assert "open steps: 6 (1 of 2 groups finished)" in text
    assert "full, with the learner or waiting for it: 4, 5" in text
    assert "engine idle 25%, learner idle 50%" in text


# real runs


def test_a_slow_reward_is_named_with_its_age_and_the_end_is_told(checkpoint, tmp_path, capsys):
    run_dir = tmp_path / "run"
    settings = {**QUICK, "slow_reward_s": 12.0, "episode_timeout_s": 77.0}
    process = _start(checkpoint, run_dir, **settings)
    _until(lambda status: _wait_named(status, "reward calls"), process)
    time.sleep(1.0)
    status = _ask(run_dir)
    reward = _wait_named(status, "reward calls")
    assert status["state"] == "running"
    assert reward["count"] == 12  # 3 prompts of 4 members
    assert re.fullmatch(r"reward 'slow' of 0-[0-2]-[0-3]", reward["oldest"])
    assert reward["deadline_s"] == 77.0
    assert 1.0 <= reward["age_s"] <= 12.5
    assert _wait_named(status, "rollouts of step 0")["age_s"] >= reward["age_s"]
    assert status["processes"] == [{"name": "orchestrator", "pid": process.pid, "state": "alive"}]
    assert (status["weight_version"], status["last_step"], status["steps"]) == (0, None, 2)
    text = render(status)
    assert "is running" in text
    assert "12 reward calls; oldest: reward 'slow' of 0-" in text

    process.send_signal(signal.SIGSTOP)
    try:
        silent = _ask(run_dir)
        assert (silent["state"], silent["processes"][0]["state"]) == ("silent", "stopped")
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == 0
    over = _ask(run_dir)
    assert (over["state"], over["resume"], over["waits"]) == ("finished", "", [])
    assert (over["last_step"]["step"], over["weight_version"]) == (1, 2)
    assert main(["status", str(run_dir)]) == 0
    assert f"{run_dir} is finished" in capsys.readouterr().out


def test_a_stopped_rank_is_the_owner_of_the_wait_and_a_kill_is_told(checkpoint, tmp_path):
    run_dir = tmp_path / "run"
    learner = {"ranks": 1, "dtype": "float32", "threads": 1, "step_timeout_s": 123.0}
    settings = {"steps": 2000, "evaluation": {"tasks": 0}, "learner": learner}
    process = _start(checkpoint, run_dir, **settings)
    try:
        status, _ = _until(lambda status: status["last_step"], process)
        ranks = {one["name"]: one["pid"] for one in status["processes"]}
        os.kill(ranks["learner rank 0"], signal.SIGSTOP)

        def stuck(status):
            # half a second ago, when the file was written, it may still have been starting
            found = [w for w in status["waits"] if w["owner"] == "learner rank 0"]
            return [w for w in found if w["age_s"] > 1.0 and w["name"] != "learner, build"]

        status, (wait,) = _until(stuck, process)
        names = ("train", "publish", "logprobs", "save")
        assert wait["name"] in [f"learner, {name}" for name in names]
        assert wait["deadline_s"] == 123.0
        states = {one["name"]: one["state"] for one in status["processes"]}
        assert states == {"orchestrator": "alive", "learner rank 0": "stopped"}
        assert "learner rank 0" in render(status)
    finally:
        process.kill()
        process.wait(timeout=10)
    status = _ask(run_dir)
    assert (status["state"], status["resume"]) == ("killed", f"posttrain resume {run_dir}")
    assert "was killed: its process ended without a word" in render(status)
    assert f"go on from step {status['resume_step']} with: posttrain resume" in render(status)


def test_stopped_and_failed_runs_say_so(checkpoint, tmp_path):
    run_dir = tmp_path / "run"
    process = _start(checkpoint, run_dir, steps=2000, evaluation={"tasks": 0})
    _until(lambda status: status["last_step"], process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    status = read_status(run_dir)
    assert (status["state"], status["resume"]) == ("stopped", f"posttrain resume {run_dir}")
    assert status["resume_step"] == status["last_step"]["step"] + 1

    failing = tmp_path / "failing"
    process = _start(checkpoint, failing, **QUICK, slow_reward_s=5.0, episode_timeout_s=0.3)
    assert process.wait(timeout=120) == 1
    status = read_status(failing)
    assert status["state"] == "failed"
    assert "12 of 12 samples could not be judged" in status["why"]


def test_parts_on_other_machines_are_told_with_their_host(tmp_path):
    config = make_config({"model": "m", "env": "e"})
    with RunDir.create(tmp_path / "run", config) as run, StatusFile(run.path):
        waits.elsewhere("learner rank 1", "node7")
        try:
            with waiting("learner, train", deadline_s=60.0, owner="learner rank 1 on node7"):
                time.sleep(1.2)  # as long as the file takes to be written
                status = read_status(run.path)
        finally:
            waits.ended("learner rank 1")
    named = {one["name"]: (one["pid"], one["state"]) for one in status["processes"]}
    assert named["learner rank 1"] == (None, "on node7")
    processes = next(line for line in render(status).splitlines() if "processes:" in line)
    assert "; learner rank 1 on node7" in processes
    assert "learner rank 1" not in waits.parts_elsewhere()


def test_no_run_is_bad_input(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_a_full_disk_does_not_reach_the_run(tmp_path):
    from posttrain.storage.status_file import StatusFile

    with StatusFile(tmp_path / "gone"):
        time.sleep(0.6)  # at least one more write
    assert not (tmp_path / "gone").exists()
