"""The whole loop with the real vLLM and the real DeepSpeed, and what it survives."""

import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM

from posttrain.storage.checkpoint import list_checkpoints
from posttrain.storage.run_dir import RunDir
from tests import forked

JOB = Path(__file__).parent / "posttrain" / "small_job.py"
VLLM = {"engine": "vllm", "max_tokens": 12, "kv_cache_gib": 0.1}
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


class Job:
    """One run of small_job.py in its own process."""

    def __init__(self, checkpoint, run_dir, settings=None):
        self.run_dir, self.log = run_dir, run_dir.parent / f"{run_dir.name}.log"
        command = [
            sys.executable,
            str(JOB),
            str(checkpoint),
            str(run_dir),
            json.dumps(settings or {}),
        ]
        with self.log.open("a") as log:
            self.process = forked.start(command, stdout=log, stderr=log, start_new_session=True)
        self.family = set()

    def wait(self, seconds=300):
        code = self.process.wait(timeout=seconds)
        for child in self.family:  # ended on every path, at the latest seconds after the run
            try:
                child.wait(timeout=20)
            except psutil.TimeoutExpired:
                pytest.fail(f"left behind: {child.cmdline()}")
        return code

    def until_step(self, n, seconds=240):
        deadline = time.monotonic() + seconds
        while self.steps() < n:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"step {n} not reached: {self.log.read_text()}"
            time.sleep(0.02)
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def records(self, kind):
        return [r for r in RunDir(self.run_dir).read_metrics() if r["kind"] == kind]

    def steps(self):
        return len(self.records("step")) if (self.run_dir / "metrics.jsonl").exists() else 0

    def find(self, *words):
        """The pid of a descendant whose command line holds all words."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except psutil.NoSuchProcess:  # it has ended, or is a zombie
                continue
            if all(word in line for word in words) and "process_guard" not in line:
                return child.pid
        raise AssertionError(f"no process with {words}")


def _check_finished(job, steps, lag=0):
    assert job.wait() == 0, job.log.read_text()
    summary = json.loads((job.run_dir / "summary.json").read_text())
    assert summary["steps"] == steps
    assert summary["logprob_gap"] <= 0.02  # a random model is unsure of everything
    assert [r["step"] for r in job.records("step")] == list(range(steps))
    syncs = job.records("sync")
    versions = [s["version"] for s in syncs if not s["canary"]]
    # one step ahead, the engine may have written all it has to before the last weights come
    assert versions == sorted(set(versions)) and {0, steps} <= set(versions)
    assert lag or versions == list(range(steps + 1))
    assert summary["syncs_verified"] == len(versions)
    run = RunDir.open(job.run_dir)
    assert run.rollouts.sealed_steps() == list(range(steps))
    ids = [r.rollout_id for s in range(steps) for g in run.load_step(s) for r in g.rollouts]
    assert len(ids) == len(set(ids)) == steps * 12
    assert (job.run_dir / "report.html").stat().st_size > 10_000
    AutoModelForCausalLM.from_pretrained(job.run_dir / "model")
    return summary


@needs_vllm
@pytest.mark.timeout(600)
def test_two_ranks_zero_2_and_servers_that_die_and_hang(checkpoint, tmp_path):
    """Killed at two seeded points of the 20 (tests/posttrain/test_faults.py), and stopped once."""
    settings = {
        "steps": 8,
        "rollout": VLLM,
        "learner": {"ranks": 2, "zero_stage": 2, "learning_rate": 1e-3},
        "sync": {"timeout_s": 20.0},
        "evaluation": {"tasks": 4},
    }
    chance = random.Random(2)
    job = Job(checkpoint, tmp_path / "run", settings)
    for steps, fault in ((1, signal.SIGKILL), (3, signal.SIGKILL), (5, signal.SIGSTOP)):
        job.until_step(steps)
        time.sleep(chance.random() * 0.5)
        group = os.getpgid(job.find("vllm.entrypoints.openai.api_server", "--port"))
        os.killpg(group, fault)  # the guard too
        at = time.time()
    _check_finished(job, 8)
    assert "(3 in all)" in job.log.read_text()
    restarts = [r["time"] for r in job.records("event") if r["event"] == "restart"]
    # noticed within 2 s + 10 s by the monitor, or after a sync's 20 s; then a start of vLLM
    assert restarts[-1] - at < 150


@needs_vllm
def test_two_servers_two_ranks_zero_3_asynchronous(checkpoint, tmp_path):
    settings = {
        "steps": 3,
        "max_lag": 1,
        "rollout": VLLM | {"servers": 2},
        "learner": {"ranks": 2, "zero_stage": 3, "learning_rate": 1e-3},
        "evaluation": {"tasks": 0},
    }
    job = Job(checkpoint, tmp_path / "run", settings)
    job.until_step(1)
    assert len(list((job.run_dir / "logs").glob("server-*.log"))) == 2
    _check_finished(job, 3, lag=1)
    for record in job.records("step"):
        assert record["lag_max"] <= 1
        assert sum(record["lag_tokens"].values()) == record["completion_tokens"]
        assert 0 <= record["learner_idle_share"] < 1
    # a step's rollouts may have been there before the last record
    assert 0 <= min(record["engine_idle_share"] for record in job.records("step")) < 1


def test_ctrl_c_checkpoints_leaves_no_process_and_resumes(checkpoint, tmp_path):
    settings = {
        "steps": 30,
        "learner": {"ranks": 1, "learning_rate": 1e-3, "threads": 1},
        "rollout": {"engine": "embedded", "max_tokens": 12},
        "checkpoint": {"every": 1000},
    }
    job = Job(checkpoint, tmp_path / "run", settings)
    job.until_step(2)
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    assert job.wait(60) == 0
    done = int(list_checkpoints(job.run_dir / "checkpoints")[-1].name.removeprefix("step-"))
    assert 2 <= done < 30 and job.steps() == done
    assert f"posttrain resume {job.run_dir}" in job.log.read_text()
    assert not (job.run_dir / "summary.json").exists()
    again = Job(checkpoint, job.run_dir)
    assert again.wait() == 0, again.log.read_text()
    assert [r["step"] for r in again.records("step")] == list(range(30))


def test_a_dead_learner_rank_stops_the_run_with_a_hint(checkpoint, tmp_path):
    settings = {
        "steps": 200,
        "learner": {"ranks": 1, "learning_rate": 1e-3, "threads": 1},
        "rollout": {"engine": "embedded", "max_tokens": 12},
        "evaluation": {"tasks": 0},
    }
    job = Job(checkpoint, tmp_path / "run", settings)
    job.until_step(2)
    os.kill(job.find("posttrain.learner.rank"), signal.SIGKILL)
    assert job.wait(60) == 1
    assert f"posttrain resume {job.run_dir}" in job.log.read_text()


def test_broken_rewards_stop_the_run_with_their_traceback(checkpoint, tmp_path):
    import envs
    import posttrain

    def broken(completion):
        raise ZeroDivisionError("the verifier fell over")

    rows = [{"prompt": f"what is {i} ?"} for i in range(50)]
    with pytest.raises(posttrain.RunError, match="the verifier fell over"):
        posttrain.grpo(
            model=checkpoint,
            env=envs.from_tasks(rows, reward=broken),
            steps=2,
            prompts_per_step=2,
            group_size=2,
            rollout={"engine": "embedded", "max_tokens": 4},
            learner={"ranks": 0, "dtype": "float32", "threads": 1},
            evaluation={"tasks": 0},
            run_dir=tmp_path / "run",
            quiet=True,
        )
    groups = RunDir.open(tmp_path / "run").load_step(0)
    assert {r.score.outcome for g in groups for r in g.rollouts} == {"error"}
