"""The Slurm script with the real parts; only ``srun`` and ``scontrol`` are stood in for."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.storage.run_dir import RunDir
from tests.posttrain.engines.two_hosts import without_ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "grpo.sbatch"
SHIM = Path(__file__).with_name("slurm_shim.py")
SMALL = """
env = "tasks.jsonl"
env_args = {reward = "fuzzy"}
[grpo]
steps = 2
prompts_per_step = 2
group_size = 2
[rollout]
max_tokens = 8
dtype = "float32"
[learner]
dtype = "float32"
threads = 1
[evaluation]
tasks = 0
"""


@pytest.fixture
def slurm(tmp_path, checkpoint):
    """``slurm(nodes, *arguments, **environment)``: the script's exit status and what it printed."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "scontrol"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {SHIM} {name} "$@"\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    environment = without_ranks() | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "POSTTRAIN": f"{sys.executable} -m posttrain.cli",
        "MODEL": str(checkpoint),
        "SERVER_FLAGS": "--dtype float32 --kv-cache-gib 0.1 --max-concurrency 16 --threads 1",
        "RUN_DIR": str(tmp_path / "run"),
        "PORT": "29410",
    }

    def run(nodes, *arguments, **more):
        done = subprocess.run(
            ["bash", SCRIPT, *arguments],
            env=environment | {"SLURM_JOB_NODELIST": nodes} | more,
            cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_job_with_one_node_is_refused(slurm):
    status, _, errors = slurm("127.0.0.1", "job.toml")
    assert status == 1
    assert "1 nodes, of which SERVER_NODES = 1 serve: each side needs one" in errors


def test_a_server_that_does_not_start_ends_the_job(slurm, tmp_path):
    status, _, errors = slurm("127.0.0.1,127.0.0.2", "job.toml", MODEL=str(tmp_path))
    assert status == 1
    assert "a rollout server ended while starting" in errors


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_over_two_nodes_trains(slurm, tmp_path):
    pytest.importorskip("vllm")
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(20)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "job.toml").write_text(SMALL)
    status, output, errors = slurm("127.0.0.1,127.0.0.2", "job.toml", "--quiet", RANKS_PER_NODE="2")
    assert status == 0, errors
    assert json.loads(output.splitlines()[-1])["syncs_verified"] == 3
    records = RunDir(tmp_path / "run").read_metrics()
    assert [record["step"] for record in records if record["kind"] == "step"] == [0, 1]
    config = RunDir(tmp_path / "run").load_config()
    assert config.rollout.urls == ("http://127.0.0.1:29411",)
    assert config.learner.ranks == 2
