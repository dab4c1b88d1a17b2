"""A real vLLM server that is asked for log-probs: as a teacher, and as the reference of a KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
import posttrain
from posttrain.errors import UsageError
from posttrain.storage.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def other_model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer with other weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def teacher(other_model: Path, loop: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The URL of a server with the other model."""
    pytest.importorskip("vllm")
    from posttrain.engines.server import ServerSpec, VllmServer

    log = tmp_path_factory.mktemp("logs") / "server.log"
    spec = ServerSpec(
        model=str(other_model), log_path=log, dtype="float32", max_model_len=64,
        threads=1, kv_cache_gib=0.1, tokens_only=False,
    )  # fmt: skip
    server = VllmServer(spec)
    loop(server.start())
    yield server.url
    loop(server.stop())


def run_with(
    model: Path, run_dir: Path, algorithm: dict[str, Any], **settings: Any
) -> posttrain.Run:
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    return posttrain.grpo(
        model=model,
        env=envs.from_tasks(rows, reward=variety),
        run_dir=run_dir,
        quiet=True,
        algorithm=algorithm,
        rollout={"engine": "embedded", "max_tokens": 12, "dtype": "float32"},
        learner={
            "ranks": 0, "dtype": "float32", "learning_rate": 5e-3, "warmup_steps": 0,
            "threads": 1,
        },
        prompts_per_step=4,
        group_size=4,
        evaluation={"tasks": 0},
        **settings,
    )  # fmt: skip


def variety(completion: str) -> float:
    return len(set(completion)) / 20


def distilled_from(url: str) -> dict[str, Any]:
    return {"preset": "distill", "advantage": {"name": "distill", "teacher": url}}


def steps_of(run: posttrain.Run) -> list[dict[str, Any]]:
    return [r for r in RunDir.open(run.path).read_metrics() if r["kind"] == "step"]


def test_the_student_comes_nearer_to_its_teacher(
    teacher: str, checkpoint: Path, tmp_path: Path
) -> None:
    """The reward plays no part: only the teacher's log-probs move it."""
    run = run_with(checkpoint, tmp_path / "run", distilled_from(teacher), steps=12)
    gaps = [-record["advantage_mean"] for record in steps_of(run)]  # mean log student - log teacher
    assert gaps[0] > 0
    assert np.mean(gaps[-3:]) < 0.8 * np.mean(gaps[:3]), gaps


def test_a_teacher_that_is_not_there_is_told_before_training(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"teacher at http://127\.0\.0\.1:9 can't be asked"):
        run_with(checkpoint, tmp_path / "run", distilled_from("http://127.0.0.1:9"), steps=1)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_reference_behind_a_server_is_the_learners_own(
    teacher: str, other_model: Path, tmp_path: Path, place: str
) -> None:
    """The run starts from the very model that the server has: both references are the same."""
    kl = {"name": "k1" if place == "reward" else "k3", "coef": 0.5, "place": place}
    # without the deviation: it would make much of equal rewards that rounding sets apart
    choices = {"advantage": "dr_grpo", "kl": kl}
    own = steps_of(run_with(other_model, tmp_path / "own", choices, steps=3))
    choices["kl"] = kl | {"reference": teacher}
    asked = steps_of(run_with(other_model, tmp_path / "asked", choices, steps=3))
    assert own[0]["kl_ref"] < 1e-5 < 1e-3 < own[1]["kl_ref"]  # it leaves its start
    for one, other in zip(own, asked, strict=True):
        for name in ("kl_ref", "loss", "reward_mean"):
            assert other[name] == pytest.approx(one[name], rel=0.02, abs=1e-4), name
