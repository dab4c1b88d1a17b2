"""LoRA against plain PEFT and torch: gradients, steps, folders, both kinds of sync, resume."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.batching import pack
from posttrain.config import LoraSettings, make_config
from posttrain.engines.embedded import EmbeddedEngine
from posttrain.engines.vllm_engine import VllmEngine
from posttrain.errors import RunError
from posttrain.learner.inline import InlineLearner
from posttrain.learner.process import make_learner
from posttrain.learner.row_tensors import RowTensors
from posttrain.model import lora
from posttrain.model.policy import load_policy
from posttrain.storage.run_dir import RunDir
from tests import forked
from tests.posttrain.model.small_samples import make_samples

PROBE = np.arange(2, 42)
RATE = 1e-3
TABLE = {"rank": 4, "alpha": 12}
pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(checkpoint, table, algorithm=None, **learner):
    plain = {"ranks": 0, "dtype": "float32", "learning_rate": RATE, "warmup_steps": 0}
    tree = {"model": str(checkpoint), "env": "none", "algorithm": algorithm or {}}
    return make_config(tree | {"learner": plain | {"threads": 1, "lora": table} | learner})


def batch_of(step):
    return pack(make_samples(step), 64, 1, step)


def use(config, work):
    """Start an inline learner, do ``work`` with it, and close it on every path."""

    async def main():
        learner = InlineLearner(config, PROBE)
        try:
            await learner.start()
            return await work(learner)
        finally:
            await learner.close()

    return asyncio.run(main())


def peft_model(checkpoint, values=None):
    """Plain PEFT, with the values of an adapter file."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if values is not None and parameter.requires_grad:
            parameter.data.copy_(values[name.replace(".default.", ".")])
    return model


def plain_logprobs(model, token_ids):
    ids = torch.as_tensor(np.asarray(token_ids))
    log_p = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1].float(), -1)
    return log_p.gather(1, ids[1:, None])[:, 0]


def ppo_loss(model, samples):
    total = sum(int(sample.loss_mask.sum()) for sample in samples)
    for sample in samples:
        logprobs = plain_logprobs(model, sample.token_ids)
        advantages = torch.from_numpy(sample.advantages[1:])
        ratio = torch.exp(logprobs - torch.from_numpy(sample.logprobs[1:]))
        per_token = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
        yield (per_token * torch.from_numpy(sample.loss_mask[1:])).sum() / total


# gradients and steps


def test_gradients_are_those_of_plain_peft(checkpoint):
    """Both A and B, away from the start where B = 0 and A has none."""
    policy = load_policy(checkpoint, torch.float32)
    lora.attach(policy.model, LoraSettings(**TABLE), str(checkpoint))
    generator = torch.Generator().manual_seed(1)
    for _, parameter in lora.adapter_weights(policy.model):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    values = {name: p.detach().clone() for name, p in lora.adapter_weights(policy.model)}

    (row,) = pack(make_samples(0, n=3), 96, 1, 0).rows[0]
    tensors = RowTensors(row, torch.device("cpu"), share_prompts=True)
    logprobs, *_ = policy(*tensors.inputs, 1.0)
    (logprobs * tensors.advantages).masked_select(tensors.mask).sum().backward()

    plain = peft_model(checkpoint, values)
    for sample in make_samples(0, n=3):
        weights = torch.from_numpy(sample.advantages[1:] * sample.loss_mask[1:])
        (plain_logprobs(plain, sample.token_ids) * weights).sum().backward()
    expected = {n.replace(".default.", "."): p.grad for n, p in plain.named_parameters()}
    found = dict(lora.adapter_weights(policy.model))
    assert len(found) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks
    for name, parameter in found.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
        assert parameter.grad.abs().max() > 1e-3, name
    moved = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_steps_are_those_of_plain_peft(checkpoint, tmp_path, stage):
    async def work(learner):
        start = load_file((await learner.publish(0, tmp_path)).path / "adapter_model.safetensors")
        for step in range(3):
            assert not (await learner.train(batch_of(step))).skipped
        after = (await learner.publish(3, tmp_path)).path
        return start, load_file(after / "adapter_model.safetensors")

    start, found = use(config_of(checkpoint, TABLE, zero_stage=stage), work)
    plain = peft_model(checkpoint, start)
    trained = [p for p in plain.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for step in range(3):
        for loss in ppo_loss(plain, make_samples(step)):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".default.", ".")
            # Adam moves a weight by about RATE whatever its gradient: where that is nearly zero,
            # rounding decides its sign. All others agree to a hundredth of a step.
            off = (found[name] - parameter).abs() > 0.02 * RATE
            assert off.float().mean() < 0.01, name
            assert not torch.equal(found[name], start[name]), name


def test_the_reference_is_the_start_policy(checkpoint, tmp_path):
    """With the adapter off, and no second model: bit for bit, however far training went."""
    config = config_of(checkpoint, TABLE, {"kl": {"name": "k3", "coef": 0.01}})
    batch = batch_of(0)

    async def work(learner):
        assert learner._rank._reference is None
        (before,) = await learner.examine(batch, "reference")
        first = await learner.train(batch)
        for step in range(1, 5):
            last = await learner.train(batch_of(step))
        (after,) = await learner.examine(batch, "reference")
        return before, after, first.metrics["kl_ref"], last.metrics["kl_ref"]

    before, after, first, last = use(config, work)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert first == 0.0 and last > 1e-6


def test_only_what_is_named_is_adapted(checkpoint, tmp_path):
    async def work(learner):
        return (await learner.publish(0, tmp_path)).path

    folder = use(config_of(checkpoint, TABLE | {"targets": ["q_proj", "v_proj"]}), work)
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"} and len(names) == 8


def test_dropout_acts_in_training_only(checkpoint, tmp_path):
    async def work(learner):
        for step in range(3):
            metrics = (await learner.train(batch_of(step))).metrics
        twice = [await learner.logprobs([PROBE], 1.0) for _ in range(2)]
        return twice, metrics["loss"]

    twice, noisy = use(config_of(checkpoint, TABLE | {"dropout": 0.5}), work)
    _, quiet = use(config_of(checkpoint, TABLE), work)
    assert np.array_equal(twice[0][0], twice[1][0])
    assert noisy != quiet


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_under_zero_3_train_sync_resume_and_export_the_same(checkpoint, tmp_path):
    """Parameters in parts: as one rank that has them whole, to rounding."""

    async def work(learner, folder, first=0):
        if first:
            await learner.load(folder / "saved")
        for step in range(first, 4):
            await learner.train(pack(make_samples(step), 64, learner.world_size, step))
            if step == 1:
                await learner.save(folder / "saved")
                await learner.saved(folder / "saved")
        await learner.publish(-1, folder, perturb=1.0)
        await learner.export(folder / "model")
        return load_file((await learner.publish(4, folder)).path / "adapter_model.safetensors")

    async def play(config, folder, first=0):
        learner = make_learner(config, PROBE, folder)
        try:
            await learner.start()
            return await work(learner, folder, first)
        finally:
            await learner.close()

    two = config_of(checkpoint, TABLE, ranks=2, zero_stage=3)
    whole = asyncio.run(play(config_of(checkpoint, TABLE), tmp_path / "one"))
    parts = asyncio.run(play(two, tmp_path / "two"))
    again = asyncio.run(play(two, tmp_path / "two", first=2))
    on_one = asyncio.run(play(config_of(checkpoint, TABLE), tmp_path / "two", first=2))
    for name, tensor in whole.items():
        for found in (parts[name], on_one[name]):
            assert ((found - tensor).abs() > 0.02 * RATE).float().mean() < 0.02, name
        assert torch.equal(parts[name], again[name]), name
    one, other = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == other.keys()
    assert all((one[name] - other[name]).abs().max() < 4 * RATE for name in one)


# folders


def test_the_folders_load_in_plain_peft_and_transformers(checkpoint, tmp_path):
    async def work(learner):
        for step in range(4):
            await learner.train(batch_of(step))
        await learner.export(tmp_path / "model")
        return (await learner.logprobs([PROBE], 1.0))[0]

    own = use(config_of(checkpoint, TABLE), work)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        start = plain_logprobs(base, PROBE).numpy()
        adapted = plain_logprobs(PeftModel.from_pretrained(base, tmp_path / "model-adapter"), PROBE)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        merged = plain_logprobs(merged, PROBE)
    assert np.abs(own - start).mean() > 0.01
    assert np.abs(adapted.numpy() - own).max() < 1e-4
    assert np.abs(merged.numpy() - own).max() < 1e-4
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert names == load_file(checkpoint / "model.safetensors").keys()
    assert not any(tmp_path.glob("*.partial"))


def test_a_checkpoint_holds_the_adapter_alone_and_resumes_bit_for_bit(checkpoint, tmp_path):
    config = config_of(checkpoint, TABLE)

    async def whole(learner):
        for step in range(4):
            await learner.train(batch_of(step))
            if step == 1:
                await learner.save(tmp_path / "saved")
                await learner.saved(tmp_path / "saved")
        return (await learner.publish(4, tmp_path)).path

    async def second_half(learner):
        await learner.load(tmp_path / "saved")
        for step in (2, 3):
            await learner.train(batch_of(step))
        return (await learner.publish(5, tmp_path)).path

    one, other = (use(config, work) / "adapter_model.safetensors" for work in (whole, second_half))
    one, other = load_file(one), load_file(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = tmp_path / "saved" / "deepspeed" / "mp_rank_00_model_states.pt"
    module = torch.load(state, weights_only=False)["module"]
    assert module and all("lora_" in name for name in module)
    changed = config_of(checkpoint, TABLE | {"alpha": 8})
    with pytest.raises(RunError, match="this run has .*'alpha': 8"):
        use(changed, second_half)


# sync


@pytest.mark.parametrize("stage", [0, 3])
def test_both_kinds_of_sync_give_the_embedded_engine_the_learners_policy(
    checkpoint, tmp_path, stage
):
    async def found(kind):
        config = config_of(checkpoint, TABLE | {"sync": kind}, zero_stage=stage)
        learner = InlineLearner(config, PROBE)
        await learner.start()
        engine = EmbeddedEngine(checkpoint, dtype="float32", max_probe_gap=1e-4, max_batch=8)
        await engine.start()
        gaps = []
        for step in range(3):
            await learner.train(batch_of(step))
            snapshot = await learner.publish(step, tmp_path / kind)
            assert snapshot.is_adapter == (kind == "adapter")
            gaps.append((await engine.sync(snapshot)).probe_gap)
        served, own = await engine.logprobs(PROBE, 1.0), (await learner.logprobs([PROBE], 1.0))[0]
        await learner.close()
        return served, own, gaps

    adapter, merged = asyncio.run(found("adapter")), asyncio.run(found("merged"))
    assert max(adapter[2] + merged[2]) < 1e-5
    assert np.abs(adapter[0] - merged[0]).max() < 1e-4
    assert np.array_equal(adapter[1], merged[1])


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_canary_moves_every_tensor_and_puts_it_back(checkpoint, tmp_path, kind):
    def read(snapshot):
        path = snapshot.path
        return load_file(path / "adapter_model.safetensors" if snapshot.is_adapter else path)

    async def work(learner):
        before = await learner.publish(0, tmp_path / "before")
        canary = await learner.publish(-1, tmp_path / "canary", perturb=1.0)
        after = await learner.publish(1, tmp_path / "after")
        return before, canary, after

    before, canary, after = use(config_of(checkpoint, TABLE | {"sync": kind}), work)
    old, moved, new = read(before), read(canary), read(after)
    assert not any(torch.equal(old[name], moved[name]) for name in old)  # B, all zero, as well
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert np.abs(canary.probe_logprobs - before.probe_logprobs).mean() > 0.5


def test_an_adapter_with_other_tensors_is_refused(checkpoint, tmp_path):
    async def work(learner):
        snapshot = await learner.publish(0, tmp_path)
        path = snapshot.path / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, path)
        engine = EmbeddedEngine(checkpoint, dtype="float32", max_probe_gap=1.0, max_batch=8)
        await engine.start()
        await engine.sync(snapshot)

    with pytest.raises(RunError, match="adapter and model differ in 1 tensors"):
        use(config_of(checkpoint, TABLE), work)


JOB = Path(__file__).parents[1] / "small_job.py"
TRAIN = {"ranks": 0, "dtype": "float32", "learning_rate": 3e-3, "warmup_steps": 2}


def _job(checkpoint, run_dir):
    given = json.dumps({"learner": TRAIN | {"threads": 1, "lora": {"rank": 8}}})
    log = (run_dir.parent / f"{run_dir.name}.log").open("a")
    command = [sys.executable, str(JOB), str(checkpoint), str(run_dir), given]
    return forked.start(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_killed_run_resumes_bit_for_bit(checkpoint, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _job(checkpoint, whole).wait(200) == 0
    process = _job(checkpoint, broken)
    deadline = time.monotonic() + 120
    while not (broken / "checkpoints" / "step-000004").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert _job(checkpoint, broken).wait(200) == 0
    for file in ("model/model.safetensors", "model-adapter/adapter_model.safetensors"):
        one, other = load_file(whole / file), load_file(broken / file)
        assert all(torch.equal(one[name], other[name]) for name in one), file
    syncs = [r for r in RunDir.open(whole).read_metrics() if r["kind"] == "sync"]
    assert len(syncs) == 14 and max(r["probe_gap"] for r in syncs) < 1e-5
    assert [p.name for p in (whole / "weights").iterdir()] == ["adapter-12"]


# vLLM


def vllm_config_of(checkpoint):
    rollout = {"engine": "vllm", "threads": 1, "kv_cache_gib": 0.1, "max_concurrency": 64}
    learner = {"ranks": 0, "threads": 1, "warmup_steps": 0, "learning_rate": 1e-2}
    return make_config(
        {
            "model": str(checkpoint),
            "env": "none",
            "rollout": rollout,
            "learner": learner | {"lora": {"rank": 4, "alpha": 8}},
            "sync": {"timeout_s": 60.0},
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_vllm_serves_the_newest_adapter(vllm_checkpoint, loop, ask, tmp_path):
    """Each sync is proven; what is sampled is the adapted policy's, also by a request in flight."""
    pytest.importorskip("vllm")
    config = vllm_config_of(vllm_checkpoint)
    under = []  # the versions that completions were sampled under

    async def asked_without_end(engine):
        while True:
            one = await engine.generate(ask(uuid4().hex, seed=len(under), max_tokens=200))
            under.append(set(one.weight_versions))

    async def run():
        learner, engine = InlineLearner(config, PROBE), VllmEngine(config, tmp_path / "logs")
        try:
            await learner.start()
            await engine.start()
            start = await learner.publish(0, tmp_path / "weights")
            gaps = [(await engine.sync(start)).probe_gap]
            streams = [asyncio.ensure_future(asked_without_end(engine)) for _ in range(4)]
            version = 0
            while version < 2 or not any(len(one) > 1 for one in under):
                version += 1
                assert version < 20, "no completion saw a sync"
                await learner.train(batch_of(version))
                snapshot = await learner.publish(version, tmp_path / "weights")
                await asyncio.sleep(0.2)  # the requests go out
                gaps.append((await engine.sync(snapshot)).probe_gap)
            assert engine.restarts == 0  # a restart would send the requests again, and hide it
            for stream in streams:
                stream.cancel()
            moved = np.abs(snapshot.probe_logprobs - start.probe_logprobs).mean()
            request = ask("after", prompt=range(9, 30), max_tokens=64)
            completion = await engine.generate(request)
            ids = np.concatenate([request.prompt_ids, completion.token_ids])
            own = (await learner.logprobs([ids], 1.0))[0][-len(completion) :]
            return gaps, moved, np.abs(own - completion.logprobs).mean(), completion, version
        finally:
            await engine.close()
            await learner.close()

    gaps, moved, generated, completion, version = loop(run())
    assert max(gaps) < 0.03 and generated < 0.03
    assert moved > 0.1
    assert set(completion.weight_versions) == {version}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_ignores_the_second_adapter_is_refused(vllm_checkpoint, loop, tmp_path):
    pytest.importorskip("vllm")
    config = vllm_config_of(vllm_checkpoint)

    async def canary():
        learner = InlineLearner(config, PROBE)
        engine = VllmEngine(
            config,
            tmp_path / "logs",
            max_restarts=0,
            worker_extension="tests.posttrain.engines.stale_adapter.WorkerExtension",
        )
        try:
            await learner.start()
            await engine.start()
            await engine.sync(await learner.publish(-1, tmp_path / "weights", perturb=1.0))
            await engine.sync(await learner.publish(0, tmp_path / "weights"))
        finally:
            await engine.close()
            await learner.close()

    with pytest.raises(RunError, match=r"weight sync 0, verify: on the probe .* by [0-9.]+ on"):
        loop(canary())
