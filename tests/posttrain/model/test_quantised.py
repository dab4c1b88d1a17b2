"""QLoRA: NF4 weights against the restored ones in plain torch; steps, syncs, ranks, refusals."""

import asyncio
import json
import shutil

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import posttrain
from posttrain import preflight
from posttrain.batching import pack
from posttrain.config import LoraSettings, make_config
from posttrain.engines.embedded import EmbeddedEngine
from posttrain.errors import UsageError
from posttrain.learner.process import make_learner
from posttrain.model import lora, quantised
from posttrain.model.policy import load_policy
from posttrain.preflight import check_settings
from tests.posttrain.model.small_samples import make_samples

PROBE = np.arange(2, 42)
RATE = 1e-3
TABLE = {"rank": 4, "alpha": 12, "bits": 4}
pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(checkpoint, table=TABLE, **learner):
    plain = {"ranks": 0, "dtype": "float32", "learning_rate": RATE, "warmup_steps": 0, "threads": 1}
    tree = {"model": str(checkpoint), "env": "none"}
    return make_config(tree | {"learner": plain | {"lora": table} | learner})


def use(config, folder, work):
    async def main():
        learner = make_learner(config, PROBE, folder)
        try:
            await learner.start()
            return await work(learner)
        finally:
            await learner.close()

    return asyncio.run(main())


async def play(learner, folder, steps=3):
    """Train, and give the adapter's tensors and the probe's log-probs."""
    for step in range(steps):
        result = await learner.train(pack(make_samples(step), 64, learner.world_size, step))
        assert not result.skipped
    snapshot = await learner.publish(steps, folder)
    return load_file(snapshot.path / "adapter_model.safetensors"), snapshot.probe_logprobs


def rounded_to_nf4(checkpoint, folder, dtype=torch.float32):
    """The checkpoint with each layer's linear weights rounded by bitsandbytes' own functions."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = dequantize_4bit(
                *quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def restored(checkpoint, tmp_path_factory):
    return rounded_to_nf4(checkpoint, tmp_path_factory.mktemp("restored"))


def test_the_base_is_in_four_bits_and_only_the_adapter_is_trained(checkpoint):
    policy = load_policy(checkpoint, torch.bfloat16, bits=4)
    lora.attach(policy.model, LoraSettings(**TABLE), str(checkpoint))
    weights = list(lora.base_weights(policy.model))
    codes = {name: p for name, p, _ in weights if quantised.is_quantised(p)}
    assert len(codes) == 2 * 7  # the linear layers of two blocks; not embedding, head or norms
    for name, parameter in codes.items():
        dtype, shape = quantised.kind_of(parameter)
        assert dtype == torch.bfloat16 and parameter.dtype == torch.uint8, name
        assert parameter.numel() == shape[0] * shape[1] / 2, name
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_steps_are_those_of_lora_on_the_restored_weights(checkpoint, restored, tmp_path, stage):
    four = config_of(checkpoint, zero_stage=stage)
    plain = config_of(restored, {"rank": 4, "alpha": 12}, zero_stage=stage)
    found, probe = use(four, tmp_path, lambda learner: play(learner, tmp_path / "four"))
    expected, reference = use(plain, tmp_path, lambda learner: play(learner, tmp_path / "plain"))
    np.testing.assert_allclose(probe, reference, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert ((tensor - expected[name]).abs() > 0.02 * RATE).float().mean() < 0.01, name


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_on_the_restored_base_is_the_learners_policy(checkpoint, tmp_path, kind, dtype):
    """Both syncs; and log-probs before them, of evaluation's mode, do not change the weights."""

    async def work(learner):
        base = tmp_path / "base"
        await learner.logprobs([PROBE], 1.0)
        await learner.export(base)
        gaps = {}
        for start in (base, checkpoint):
            engine = EmbeddedEngine(start, dtype=dtype, max_probe_gap=1e9, max_batch=8)
            await engine.start()
            for step in range(2):
                await learner.train(pack(make_samples(step), 64, 1, step))
                report = await engine.sync(await learner.publish(step, tmp_path / "weights"))
                gaps[start, step] = report.probe_gap
        canary = await learner.publish(-1, tmp_path / "weights", perturb=1.0)
        plain = await learner.publish(5, tmp_path / "weights")
        moved = np.abs(canary.probe_logprobs - plain.probe_logprobs).mean()
        await engine.sync(await learner.publish(6, tmp_path / "weights"))
        return gaps, moved, base

    config = config_of(checkpoint, TABLE | {"sync": kind}, dtype=dtype)
    gaps, moved, base = use(config, tmp_path, work)
    noise = 1e-5 if dtype == "float32" else 0.05
    assert gaps[base, 0] < noise and gaps[base, 1] < noise
    if kind == "adapter":  # the checkpoint's own weights are another policy
        assert gaps[checkpoint, 0] > 5 * noise
    else:
        assert gaps[checkpoint, 0] < noise
    assert moved > 0.3
    names = load_file(base / "model.safetensors").keys()
    assert names == load_file(checkpoint / "model.safetensors").keys()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_ranks_are_one(checkpoint, tmp_path):
    one, _ = use(config_of(checkpoint), tmp_path / "a", lambda le: play(le, tmp_path / "a"))
    config = config_of(checkpoint, ranks=2, zero_stage=2)
    two, _ = use(config, tmp_path / "b", lambda le: play(le, tmp_path / "b"))
    for name, tensor in one.items():
        assert ((tensor - two[name]).abs() > 0.02 * RATE).float().mean() < 0.02, name


# whole runs


def test_a_run_serves_the_restored_base(checkpoint, tmp_path):
    """Through the start-up canary and the parity gate, which would refuse another base."""
    import envs

    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(50)]

    def variety(completion):
        return len(set(completion)) / 20

    run = tmp_path / "run"
    posttrain.grpo(
        model=str(checkpoint),
        env=envs.from_tasks(rows, reward=variety),
        run_dir=run,
        steps=2,
        prompts_per_step=2,
        group_size=4,
        rollout={"engine": "embedded", "max_tokens": 8, "dtype": "float32"},
        learner={"ranks": 0, "dtype": "float32", "lora": TABLE, "learning_rate": 1e-2},
        sync={"max_probe_gap": 1e-3},
        evaluation={"tasks": 0},
    )
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    syncs = [r for r in records if r["kind"] == "sync"]
    assert len(syncs) == 4 and max(r["probe_gap"] for r in syncs if not r["canary"]) < 1e-4
    (said,) = [r["choices"] for r in records if r.get("event") == "learner"]
    assert said["weights"] == "NF4, restored in float32" and said["trained"] == "adapter"
    assert sorted(p.name for p in run.iterdir() if p.is_dir() and p.name.startswith("base")) == [
        "base"
    ]
    base = load_file(run / "base" / "model.safetensors")
    model = load_file(run / "model" / "model.safetensors")
    moved = [name for name in base if not torch.equal(base[name], model[name])]
    assert moved and all("_proj" in name for name in moved)  # what the adapter changed


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_vllm_on_the_restored_base_is_the_learners_policy(tmp_path, checkpoint):
    pytest.importorskip("vllm")
    from posttrain.engines.vllm_engine import VllmEngine

    rollout = {"engine": "vllm", "threads": 1, "kv_cache_gib": 0.1, "max_concurrency": 8}
    config = config_of(checkpoint, dtype="bfloat16", learning_rate=1e-2)
    sync = {"max_probe_gap": 0.05, "timeout_s": 60.0}
    config = make_config(config.model_dump() | {"rollout": rollout, "sync": sync})

    async def main():
        learner = make_learner(config, PROBE, tmp_path)
        engine = VllmEngine(config, tmp_path, model=tmp_path / "base")
        try:
            await learner.start()
            await learner.export(tmp_path / "base")
            await engine.start()
            start = await engine.logprobs(PROBE, 1.0)
            gaps = []
            for step in range(3):
                gaps.append((await engine.sync(await learner.publish(step, tmp_path))).probe_gap)
                await learner.train(pack(make_samples(step), 64, 1, step))
            return gaps, np.abs(await engine.logprobs(PROBE, 1.0) - start).mean()
        finally:
            await asyncio.gather(learner.close(), engine.close())

    gaps, moved = asyncio.run(main())
    assert max(gaps) < 0.05 < moved
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    with torch.no_grad():
        ids = torch.from_numpy(PROBE)[None]
        logprobs = [
            torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1).gather(
                1, ids[0, 1:, None]
            )
            for model in (plain, own)
        ]
    assert (logprobs[0] - logprobs[1]).abs().mean() > 0.1  # what the probe would have seen


# refusals


@pytest.mark.parametrize(
    ("learner", "rollout", "says"),
    [
        ({"zero_stage": 3}, {}, "zero_stage = 3: ZeRO-3 cuts weights into parts"),
        ({}, {"engine": "vllm", "urls": ["http://127.0.0.1:9"]}, 'lora.sync = "merged"'),
    ],
)
def test_what_cannot_work_is_refused(checkpoint, learner, rollout, says):
    tree = config_of(checkpoint, **learner).model_dump() | {"rollout": rollout}
    with pytest.raises(UsageError, match=says):
        check_settings(make_config(tree))


def test_without_bitsandbytes_it_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(preflight, "installed", lambda package: package != "bitsandbytes")
    with pytest.raises(UsageError, match=r"pip install 'posttrain\[qlora\]'"):
        check_settings(config_of(checkpoint))


def test_only_four_bits(checkpoint):
    with pytest.raises(UsageError, match="bits"):
        config_of(checkpoint, TABLE | {"bits": 8})
