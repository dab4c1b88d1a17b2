"""Every preset through the whole loop: embedded engine, real learner, a few steps."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import envs
import posttrain
from posttrain.presets import PRESETS
from posttrain.storage.run_dir import RunDir
from tests import forked
from tests.posttrain.documented import undocumented

JOB = Path(__file__).with_name("small_job.py")
SMALL: dict[str, Any] = {
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 3,
    "rollout": {"engine": "embedded", "max_tokens": 8, "dtype": "float32"},
    "learner": {
        "ranks": 0, "dtype": "float32", "learning_rate": 1e-3, "warmup_steps": 0,
        "threads": 1,
    },
    "evaluation": {"tasks": 0},
}  # fmt: skip


def variety(completion: str) -> float:
    return len(set(completion)) / 20


def small_run(checkpoint: Path, run_dir: Path, **settings: Any) -> posttrain.Run:
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    env = envs.from_tasks(rows, reward=variety)
    return posttrain.grpo(
        model=checkpoint, env=env, run_dir=run_dir, quiet=True, **(SMALL | settings)
    )


def steps_of(run: posttrain.Run) -> list[dict[str, Any]]:
    return [r for r in RunDir.open(run.path).read_metrics() if r["kind"] == "step"]


def moved(checkpoint: Path, run: posttrain.Run) -> bool:
    before, after = (load_file(p / "model.safetensors") for p in (checkpoint, run.model))
    return any(not torch.equal(before[name].float(), after[name].float()) for name in before)


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"distill"}))
def test_a_preset_trains(checkpoint: Path, tmp_path: Path, preset: str) -> None:
    algorithm: dict[str, Any] = {"preset": preset}
    if preset == "expert_iteration":
        algorithm["advantage"] = {"name": "rejection", "threshold": 0.2, "keep": 1}
    run = small_run(checkpoint, tmp_path / "run", algorithm=algorithm, mask_truncated=False)
    records = steps_of(run)
    assert [r["step"] for r in records] == [0, 1]
    assert all(math.isfinite(r["loss"]) and not r["skipped"] for r in records)
    assert moved(checkpoint, run)
    assert undocumented(run.path) == set()
    # the loss of the first step is on-policy: the ratio is 1
    assert records[0]["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    if preset == "ppo":
        assert all(math.isfinite(r["value_loss"]) for r in records)
    if preset == "gspo":  # on-policy: every weight is 1
        assert records[0]["correction_weight"] == pytest.approx(1.0, abs=1e-4)
        assert records[0]["effective_sample_share"] == pytest.approx(1.0, abs=1e-4)
    if preset == "remax":
        groups = RunDir.open(run.path).load_step(0)
        assert groups is not None
        assert all(g.greedy is not None and len(g.rollouts) == 3 for g in groups)


def test_refills_replace_groups_without_signal(checkpoint: Path, tmp_path: Path) -> None:
    """A reward that nobody gets in half of the prompts: refills bring more groups, bounded."""

    def even_only(prompt: str, completion: str) -> float:
        number = int(prompt.split()[2])
        return len(set(completion)) / 20 if number % 2 else 0.0

    rows = [{"prompt": f"what is {i} + 1 ?", "answer": "?"} for i in range(100)]
    env = envs.from_tasks(rows, reward=even_only)
    run = posttrain.grpo(
        model=checkpoint, env=env, run_dir=tmp_path / "run", quiet=True,
        **(SMALL | {"max_refills": 3, "prompts_per_step": 4}),
    )  # fmt: skip
    records = steps_of(run)
    assert all(4 <= r["groups"] <= 16 for r in records)
    assert sum(r["groups_without_signal"] for r in records) > 0
    for record in records:
        groups = RunDir.open(run.path).load_step(record["step"])
        assert groups is not None
        assert [g.prompt_index for g in groups] == list(range(record["groups"]))
        # a refill asks for what is lacking, so signal never overshoots
        assert 0 < record["groups"] - record["groups_without_signal"] <= 4


OWN = Path(__file__).parents[2] / "scripts" / "own_algorithm.py"


def test_a_users_own_loss_runs_in_a_rank_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    """The functions of the example script, by the references that a script's own functions get."""
    settings = SMALL | {
        "learner": SMALL["learner"] | {"ranks": 1},
        "algorithm": {
            "advantage": f"{OWN}:above_median",
            "loss": {"name": f"{OWN}:soft_clip", "width": 0.3},
        },
    }
    run = small_run(checkpoint, tmp_path / "run", **settings)
    assert [r["far"] for r in steps_of(run)] == [0.0, 0.0]  # on-policy: no token is far
    assert moved(checkpoint, run)


def test_a_killed_ppo_run_resumes_to_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    """The critic and its optimiser are part of the checkpoint."""
    settings = json.dumps(
        {
            "steps": 8, "checkpoint": {"every": 2}, "evaluation": {"tasks": 0},
            "algorithm": {"preset": "ppo"},
        }
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, str(JOB), str(checkpoint)]
    assert forked.start([*command, str(whole), settings]).wait(200) == 0
    process = forked.start([*command, str(cut), settings])
    metrics = cut / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"value_loss"') >= 3:
            process.kill()
        time.sleep(0.005)
    assert process.wait(60) == -9
    assert forked.start([*command, str(cut), settings]).wait(200) == 0
    one, other = (load_file(run / "model/model.safetensors") for run in (whole, cut))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
