"""On-policy distillation against a real vLLM teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
import posttrain
from posttrain.errors import UsageError
from posttrain.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def teacher(checkpoint: Path, loop: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of the same tokenizer with other weights."""
    pytest.importorskip("vllm")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.server import ServerSpec, VllmServer

    path = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(path)
    spec = ServerSpec(
        model=str(path), log_path=path / "server.log", dtype="float32", max_model_len=64,
        threads=1, kv_cache_gib=0.1, tokens_only=False,
    )  # fmt: skip
    server = VllmServer(spec)
    loop(server.start())
    yield server.url
    loop(server.stop())


def run_with(teacher: str, checkpoint: Path, run_dir: Path, **settings: Any) -> posttrain.Run:
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    return posttrain.grpo(
        model=checkpoint,
        env=envs.from_tasks(rows, reward=lambda completion: 0.0),
        run_dir=run_dir,
        quiet=True,
        algorithm={"preset": "distill", "advantage": {"name": "distill", "teacher": teacher}},
        rollout={"engine": "embedded", "max_tokens": 12, "dtype": "float32"},
        learner={
            "placement": "inline", "dtype": "float32", "learning_rate": 5e-3, "warmup_steps": 0,
            "threads": 1,
        },
        prompts_per_step=4,
        group_size=4,
        evaluation={"tasks": 0},
        **settings,
    )  # fmt: skip


def test_the_student_comes_nearer_to_its_teacher(
    teacher: str, checkpoint: Path, tmp_path: Path
) -> None:
    """No reward at all: only the teacher's log-probs move it."""
    run = run_with(teacher, checkpoint, tmp_path / "run", steps=12)
    records = [r for r in RunDir.open(run.path).read_metrics() if r["kind"] == "step"]
    gaps = [-record["advantage_mean"] for record in records]  # mean log student - log teacher
    assert gaps[0] > 0
    assert np.mean(gaps[-3:]) < 0.8 * np.mean(gaps[:3]), gaps


def test_a_teacher_that_is_not_there_is_told_before_training(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"teacher at http://127\.0\.0\.1:9 can't be asked"):
        run_with("http://127.0.0.1:9", checkpoint, tmp_path / "run", steps=1)
