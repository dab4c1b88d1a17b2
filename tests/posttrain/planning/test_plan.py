"""`posttrain plan`: numbers worked out by hand, refused input, and a real calibration."""

import dataclasses
import json
import os

import numpy as np
import pytest

from posttrain.cli import main
from posttrain.config import LearnerSettings, LoraSettings, make_config
from posttrain.learner.memory import (
    Linear,
    ModelSize,
    Parts,
    RowSize,
    activation_bytes,
    host_memory,
    model_size,
    rank_memory,
)
from posttrain.planning.workload import largest_row, workload

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
    # DeepSpeed sets the whole bucket aside: it is made no larger than the model
    assert _states("bfloat16", 2, cuda=True)[4] == 2 * 1000 + 1000


def test_a_critic_and_a_reference_are_counted_when_there_are_any():
    learner = LearnerSettings(dtype="bfloat16")
    plain = rank_memory(SIZE, ROW, learner, ALONE)
    both = rank_memory(SIZE, ROW, learner, Parts(1, reference=True, critic=True, cuda=False))
    assert "critic" not in plain and "reference" not in plain
    assert both["reference"] == 2000
    assert both["critic"] == (2 + 4 + 4 + 8) * (1000 + 8 + 1)  # its head: 8 weights, one bias


def test_activations_and_logits_worked_by_hand():
    # b = 2, t = 10, s = 12, w = 4, q = 16, k = 4, H = 8, I = 24, N = 6
    # norms 2 (4 + 4) 8 = 128; turned (4 + 2) 20 = 120; o_proj 32; MLP 8 x 24 = 192: 472 a token
    # attention 12 x 4 x 40 = 1920; a layer 6640; ends 10 x 6 x 8 + 6 x 2 x 8 = 576
    # passing 10 (4 x 24 + 32) = 1280
    learner = LearnerSettings(dtype="bfloat16")
    assert activation_bytes(SIZE, ROW, learner, cuda=False) == 2 * 6640 + 576 + 1280
    again = LearnerSettings(dtype="bfloat16", memory_savings=("checkpointing",))
    assert activation_bytes(SIZE, ROW, again, cuda=False) == 2 * 160 + 6640 + 576 + 1280
    found = rank_memory(SIZE, ROW, learner, ALONE)
    assert found["logits"] == 4 * 50 * 10


def _learner(**settings):
    return LearnerSettings(dtype="bfloat16", **settings)


def test_an_adapter_and_frozen_weights_in_two_and_in_four_bits_and_a_half():
    # q_proj 8 x 16 twice and up_proj 8 x 24 twice: rank 4 adds 4 (24 + 24 + 32 + 32) = 448
    linears = (Linear("q_proj", 8, 16, 2), Linear("up_proj", 8, 24, 2))
    size = dataclasses.replace(SIZE, linears=linears)
    assert size.adapter(LoraSettings(rank=4)) == 448
    assert size.adapter(LoraSettings(rank=4, targets=("q_proj",))) == 192
    plain = rank_memory(size, ROW, _learner(lora={"rank": 4}), ALONE)
    assert plain["frozen weights"] == 2 * 1000
    names = ("weights", "gradients", "float32 weights", "optimiser")
    assert tuple(plain[name] for name in names) == (2 * 448, 4 * 448, 4 * 448, 8 * 448)
    four = rank_memory(size, ROW, _learner(lora={"rank": 4, "bits": 4}), ALONE)
    # 640 of the 1000 weights are in linear layers, at 4.127 bits; the others as they were
    assert four["frozen weights"] == int(640 * (4 + 8 / 64 + 32 / 16384) / 8) + 2 * 360
    reference = Parts(1, reference=True, critic=False, cuda=False)
    assert "reference" not in rank_memory(size, ROW, _learner(lora={"rank": 4}), reference)


def test_offload_moves_the_optimiser_to_the_host_of_a_gpu():
    parts = Parts(ranks=4, reference=False, critic=False, cuda=True)
    kept = rank_memory(SIZE, ROW, _learner(zero_stage=2), parts)
    settings = _learner(zero_stage=2, memory_savings=("offload",))
    moved = rank_memory(SIZE, ROW, settings, parts)
    assert (kept["optimiser"], moved["optimiser"], moved["float32 weights"]) == (2000, 0, 0)
    assert host_memory(SIZE, settings, parts) == 16 * 250
    on_cpu = dataclasses.replace(parts, cuda=False)  # the host is the device
    assert rank_memory(SIZE, ROW, settings, on_cpu)["optimiser"] == 2000
    assert host_memory(SIZE, settings, on_cpu) == 0


def test_ranks_that_share_a_row_share_its_activations():
    alone = activation_bytes(SIZE, ROW, _learner(), cuda=False)
    shared = activation_bytes(SIZE, ROW, _learner(ranks=2, sequence_parallel=2), cuda=False)
    assert shared == alone // 2


def test_a_mixture_has_parameters_that_a_token_does_not_use(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, moe_intermediate_size=8,
        num_experts=8, num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    size = model_size(str(tmp_path))
    experts = 2 * 8 * 3 * 8 * 16  # layers, experts, three matrices
    assert size.parameters - size.active == experts * 6 // 8
    assert size.intermediate == 2 * 8


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


def test_a_plan_tells_what_an_adapter_sends_and_ranks_share(capsys, job):
    lora = "learner.lora={rank=4, bits=4}"
    plan = _plan(capsys, *job, lora, "learner.ranks=2", "learner.sequence_parallel=2")
    # rank 4, two blocks: q 64+64, k and v 64+32, o 64+64, three of 64+128
    assert plan["sync_bytes"] == 2 * 4 * 2 * (128 + 2 * 96 + 128 + 3 * 192)
    assert plan["batch"]["ranks"] == 1 and plan["learner"]["sequence_parallel"] == 2
    assert main(["plan", *job, lora, "learner.ranks=2", "learner.sequence_parallel=2"]) == 0
    out = capsys.readouterr().out
    assert "shared by 2 ranks" in out and "frozen weights" in out


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
