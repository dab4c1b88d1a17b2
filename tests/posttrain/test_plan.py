"""`posttrain plan`: numbers worked out by hand, refused input, and a real calibration."""

import json
import os

import numpy as np
import pytest

from posttrain.cli import main
from posttrain.config import LearnerSettings, make_config
from posttrain.memory import (
    ModelSize,
    Parts,
    RowSize,
    activation_bytes,
    model_size,
    rank_memory,
)
from posttrain.workload import largest_row, workload

SIZE = ModelSize(1000, 0, 2, 8, 16, 4, 24, 50, qk_norm=True)
ROW = RowSize(tokens=10, slots=12, targets=6, chunk=4)
ALONE = Parts(ranks=1, reference=False, critic=False, cuda=False)


def _states(dtype, stage, **parts):
    given = {"ranks": 4, "reference": False, "critic": False, "cuda": False} | parts
    learner = LearnerSettings(dtype=dtype, zero_stage=stage)
    found = rank_memory(SIZE, ROW, learner, Parts(**given))
    names = ("weights", "gradients", "float32 weights", "optimiser", "passing")
    return tuple(found[name] for name in names)


def test_weights_gradients_and_optimiser_by_stage_and_dtype():
    # 1000 parameters on 4 ranks: a part is 250
    assert _states("float32", 0) == (4000, 4000, 0, 8000, 0)
    assert _states("bfloat16", 0) == _states("bfloat16", 1) == (2000, 4000, 1000, 2000, 2000)
    assert _states("bfloat16", 2) == (2000, 1000, 1000, 2000, 2000 + 1000)
    assert _states("float32", 1) == (4000, 1000, 1000, 2000, 4000 + 1000)
    assert _states("bfloat16", 3) == (500, 1000, 1000, 2000, 2000 + 1000)
    # on a GPU the whole bucket is allocated
    assert _states("bfloat16", 2, cuda=True)[4] == 2 * 500_000_000 + 1000


def test_a_critic_and_a_reference_are_counted_when_there_are_any():
    learner = LearnerSettings(dtype="bfloat16")
    plain = rank_memory(SIZE, ROW, learner, ALONE)
    both = rank_memory(SIZE, ROW, learner, Parts(1, reference=True, critic=True, cuda=False))
    assert "critic" not in plain and "reference" not in plain
    assert both["reference"] == 2000
    assert both["critic"] == (2 + 4 + 4 + 8) * (1000 + 8 + 1)  # its head: 8 weights, one bias


def test_activations_and_logits_worked_by_hand():
    # b = 2, t = 10, s = 12, w = 4, q = 16, k = 4, H = 8, I = 24, N = 6
    # norms 2 (4 + 4) 8 = 128; turned (4 + 6) 20 = 200; o_proj 32; MLP 8 x 24 = 192: 552 a token
    # attention 12 x 4 x 40 = 1920; a layer 7440; ends 10 x 10 x 8 + 6 x 2 x 8 = 896
    # passing 10 (4 x 24 + 32) = 1280
    learner = LearnerSettings(dtype="bfloat16")
    assert activation_bytes(SIZE, ROW, learner, cuda=False) == 2 * 7440 + 896 + 1280
    again = LearnerSettings(dtype="bfloat16", gradient_checkpointing=True)
    assert activation_bytes(SIZE, ROW, again, cuda=False) == 2 * 160 + 7440 + 896 + 1280
    found = rank_memory(SIZE, ROW, learner, ALONE)
    assert found["logits"] == 4 * 50 * 10


def test_a_model_is_counted_as_it_is(checkpoint):
    from transformers import AutoModelForCausalLM

    size = model_size(str(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.head, size.layers, size.hidden, size.query, size.key) == (0, 2, 64, 64, 32)
    assert (size.intermediate, size.qk_norm) == (128, True)
    assert size.kv_bytes("bfloat16") == 2 * 2 * 32 * 2


def test_the_batch_is_packed_as_the_learner_packs_it():
    config = make_config(
        {"model": "-", "env": "-", "grpo": {"group_size": 4}}
        | {"learner": {"ranks": 2, "tokens_per_row": 64}}
    )
    work = workload([np.arange(6), np.arange(10, 18)], config, 50, answer_tokens=10)
    # groups of 4 x 16 and 4 x 18 tokens: 136 need 3 rows of 64, so 4 rows, 2 for each rank
    assert (work.samples, work.completion_tokens, work.rows_per_rank) == (8, 80, 2)
    row = largest_row(work.batch, 50)
    assert row.chunk == 1024
    assert row.targets == 20  # two answers of 10 and no filling needed


@pytest.fixture
def job(checkpoint, tmp_path):
    path = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"model={checkpoint}",
        f"env={path}",
        "env_args={reward='exact'}",
        f"run_dir={tmp_path / 'run'}",
        "rollout.engine=embedded",
        "rollout.max_tokens=8",
        "grpo.prompts_per_step=2",
        "grpo.group_size=4",
        "grpo.steps=50",
        "evaluation.tasks=0",
    ]


def _plan(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_without_calibration(capsys, job, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan = _plan(capsys, *job, "learner.ranks=2", "--price", "3", "--answer-tokens", "5")
    batch, time, cost = plan["batch"], plan["time"], plan["cost"]
    assert (batch["samples"], batch["rows_per_rank"], batch["loss_tokens_per_step"]) == (8, 1, 40)
    assert batch["tokens_per_step"] == 8 * (batch["prompt_tokens_mean"] + 5)
    assert plan["learner"]["total"] == sum(plan["learner"]["memory"].values())
    assert plan["sync_bytes"] == 2 * plan["parameters"]
    assert plan["engine"]["sequences_that_fit"] == 8  # the embedded engine's cache is that large
    assert time["how"].startswith("guessed from a matmul")
    assert time["run_s"] == pytest.approx(50 * (time["train_s"] + time["generation_s"]))
    assert cost["gpus"] == 2
    assert cost["total"] == pytest.approx(3 * 2 * time["run_s"] / 3600)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_what_a_critic_and_a_kl_add_is_in_the_plan(capsys, job):
    plain = _plan(capsys, *job)["learner"]["memory"]
    ppo = _plan(capsys, *job, "algorithm.preset=ppo")["learner"]["memory"]
    assert "critic" not in plain
    assert ppo["critic"] > 4 * plain["weights"]


def test_calibration_measures_the_real_parts(capsys, job, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", *job, "--calibrate"]) == 0
    out = capsys.readouterr().out
    assert "measured here: one rank's step" in out
    assert "samples per step  8 = 2 prompts x 4" in out
    assert "in turn" in out and "GPUs" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_refused_as_for_a_run(capsys, job, tmp_path):
    for wrong, says in (
        (["model=nowhere/at/all"], "does not exist"),
        (["learner.rank=2"], "did you mean"),
        (["--price", "-1"], "--price is -1"),
        (["--answer-tokens", "9"], "at most 8 tokens"),
    ):
        assert main(["plan", *job, *wrong]) == 2
        assert says in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["tasks.jsonl"]
