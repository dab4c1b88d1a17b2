"""Mixtures of experts: the balancing loss against transformers, cut any way; what is logged."""

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from posttrain.batching import pack
from posttrain.config import LoraSettings, make_config
from posttrain.engines.embedded import EmbeddedEngine
from posttrain.errors import UsageError
from posttrain.learner.process import make_learner
from posttrain.model import lora
from posttrain.model.expert_load import Experts, StepLoad, collapse_text, is_collapsed
from posttrain.types import Sample

VOCABULARY, EXPERTS, CHOSEN, COEFFICIENT = 60, 4, 2, 0.5
PROBE = np.arange(2, 42)
RATE = 1e-3


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.2,
        router_aux_loss_coef=COEFFICIENT,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


def config_of(model, **learner):
    plain = {"ranks": 0, "dtype": "float32", "learning_rate": RATE, "warmup_steps": 0}
    plain |= {"tokens_per_row": 64, "threads": 1}
    return make_config({"model": str(model), "env": "none", "learner": plain | learner})


def make_samples(seed, n=9):
    """Three groups of three answers with one prompt each, whose tokens the learner shares."""
    rng = np.random.default_rng(seed)
    prompts, samples = rng.integers(0, VOCABULARY, (3, 5)), []
    for i in range(n):
        length = int(rng.integers(7, 24))
        mask = np.arange(length) >= 5
        ids = np.concatenate([prompts[i // 3], rng.integers(0, VOCABULARY, length - 5)])
        logprobs = np.where(mask, rng.normal(-4, 0.2, length), 0).astype(np.float32)
        advantages = np.where(mask, rng.normal(), 0).astype(np.float32)
        samples.append(Sample(ids, mask, logprobs, advantages, np.zeros(length, np.int64), str(i)))
    return samples


def plain_loss(model, samples):
    """The policy's loss and aux, of one padded batch, by transformers' own functions."""
    longest = max(len(sample) for sample in samples)
    ids, seen = (torch.zeros(len(samples), longest, dtype=torch.long) for _ in range(2))
    for i, sample in enumerate(samples):
        ids[i, : len(sample)] = torch.from_numpy(sample.token_ids)
        seen[i, : len(sample)] = 1
    out = model(input_ids=ids, attention_mask=seen, output_router_logits=True)
    layers = [load_balancing_loss_func((x,), EXPERTS, CHOSEN, seen) for x in out.router_logits]
    loss, total = torch.zeros(()), sum(int(sample.loss_mask.sum()) for sample in samples)
    for i, sample in enumerate(samples):
        logprobs = torch.log_softmax(out.logits[i, : len(sample) - 1], -1)
        logprobs = logprobs.gather(1, ids[i, 1 : len(sample), None])[:, 0]
        advantages = torch.from_numpy(sample.advantages[1:])
        ratio = torch.exp(logprobs - torch.from_numpy(sample.logprobs[1:]))
        per_token = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
        loss = loss + (per_token * torch.from_numpy(sample.loss_mask[1:])).sum()
    return loss / total, sum(layers) / len(layers)


def trained(config, folder, tokens_per_row, seeds=(0, 1)):
    async def main():
        learner = make_learner(config, PROBE, folder)
        try:
            await learner.start()
            for step, seed in enumerate(seeds):
                batch = pack(make_samples(seed), tokens_per_row, learner.world_size, step)
                result = await learner.train(batch)
            return result.metrics, load_file((await learner.publish(1, folder)).path)
        finally:
            await learner.close()

    return asyncio.run(main())


@pytest.fixture(scope="module")
def expected(mixture):
    """Two steps of AdamW in plain torch: weights, and the last step's aux and gradient norm."""
    model = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for seed in (0, 1):
        loss, aux = plain_loss(model, make_samples(seed))
        (loss + COEFFICIENT * aux).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    numbers = {"router_aux_loss": aux.item(), "grad_norm": norm.item(), "loss": loss.item()}
    return dict(model.named_parameters()), numbers


CUTS = [
    (1000, {}),  # one row
    (64, {}),  # several
    (24, {"zero_stage": 2}),  # one for each sample
    (64, {"memory_savings": ["checkpointing"]}),
    (64, {"zero_stage": 3}),
    (64, {"zero_stage": 2, "memory_savings": ["offload"]}),
]


@pytest.mark.parametrize(("tokens_per_row", "learner"), CUTS)
def test_a_step_is_that_of_transformers_however_it_is_cut(
    mixture, tmp_path, expected, tokens_per_row, learner
):
    metrics, found = trained(config_of(mixture, **learner), tmp_path, tokens_per_row)
    weights, numbers = expected
    for name, value in numbers.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    for name, weight in found.items():
        # Adam moves a weight by about RATE whatever its gradient: where that is nearly zero,
        # rounding decides its sign. All others agree to a fraction of a step.
        off = (weight - weights[name]).abs() > 0.05 * RATE
        assert off.float().mean() < 0.01, name


def test_the_loss_is_what_moves_the_router(mixture, tmp_path):
    """Without a coefficient the router learns from the policy's loss alone: another result."""
    _, with_aux = trained(config_of(mixture), tmp_path / "with", 64)
    plain = AutoModelForCausalLM.from_pretrained(mixture)
    plain.config.router_aux_loss_coef = 0.0
    plain.save_pretrained(tmp_path / "plain")
    metrics, without = trained(config_of(tmp_path / "plain"), tmp_path / "without", 64)
    name = "model.layers.0.mlp.gate.weight"
    assert ((with_aux[name] - without[name]).abs() > 0.5 * RATE).float().mean() > 0.1
    assert metrics["router_aux_loss"] > CHOSEN  # still reported


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_ranks_are_one(mixture, tmp_path, expected):
    metrics, found = trained(config_of(mixture, ranks=2, zero_stage=2), tmp_path, 24)
    weights, numbers = expected
    for name, value in numbers.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    for name, weight in found.items():
        assert ((weight - weights[name]).abs() > 0.05 * RATE).float().mean() < 0.01, name


def test_the_embedded_engine_is_the_learner(mixture, tmp_path):
    async def main():
        learner = make_learner(config_of(mixture), PROBE, tmp_path)
        engine = EmbeddedEngine(mixture, dtype="float32", max_probe_gap=1e-4, max_batch=8)
        await learner.start()
        await engine.start()
        start = await engine.logprobs(PROBE, 1.0)
        for step in range(2):
            await learner.train(pack(make_samples(step), 64, 1, step))
        report = await engine.sync(await learner.publish(1, tmp_path))
        await learner.export(tmp_path / "model")
        await learner.close()
        return report.probe_gap, np.abs(await engine.logprobs(PROBE, 1.0) - start).mean()

    gap, moved = asyncio.run(main())
    assert gap < 1e-5 and moved > 1e-3
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert exported.keys() == load_file(mixture / "model.safetensors").keys()  # expert by expert


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_vllm_computes_with_the_learners_experts(tmp_path):
    """Fused experts go to vLLM under transformers' names; 48 is no size its kernels take as it is.

    Without packing them again after the load, the gap is 0.9 and every sync is refused.
    """
    pytest.importorskip("vllm")
    from posttrain.engines.vllm_engine import VllmEngine

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 48}
    sizes |= {"num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 3, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    made = Qwen3MoeConfig(vocab_size=500, initializer_range=0.1, **sizes, **heads)
    Qwen3MoeForCausalLM(made).save_pretrained(tmp_path / "model")
    rollout = {"engine": "vllm", "dtype": "float32", "threads": 1, "kv_cache_gib": 0.1}
    sync = {"max_probe_gap": 1e-3, "timeout_s": 60.0}
    config = config_of(tmp_path / "model").model_dump() | {"rollout": rollout, "sync": sync}
    config = make_config(config)

    async def main():
        learner, engine = make_learner(config, PROBE, tmp_path), VllmEngine(config, tmp_path)
        try:
            await asyncio.gather(learner.start(), engine.start())
            start = await engine.logprobs(PROBE, 1.0)
            canary = await learner.publish(-1, tmp_path, perturb=1.0)
            gaps = [(await engine.sync(canary)).probe_gap]
            for step in range(2):
                await learner.train(pack(make_samples(step), 64, 1, step))
                gaps.append((await engine.sync(await learner.publish(step, tmp_path))).probe_gap)
            (own,) = await learner.logprobs([PROBE], 1.0)
            return gaps, np.abs(canary.probe_logprobs - start).mean(), np.abs(own - start).mean()
        finally:
            await asyncio.gather(learner.close(), engine.close())

    gaps, canary_moved, trained_moved = asyncio.run(main())
    assert max(gaps) < 1e-4
    assert canary_moved > 0.3 and trained_moved > 1e-3


# what is said of the load


def load_of(counts_L_E, chosen, coefficient=1.0, monkeypatch=None):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    load = StepLoad(Experts(len(counts_L_E[0]), chosen, coefficient))
    counts = torch.tensor(counts_L_E, dtype=torch.float32)
    load.note(torch.stack([counts / chosen, counts]))
    return load.metrics()


def test_metrics_worked_by_hand(monkeypatch):
    # 10 tokens, 2 of 4 experts each. Layer 0 even: 5 5 5 5, shares 1/2, all 4 used.
    # Layer 1: 10 10 0 0, shares 1 1 0 0, two used: load (1/2, 1/2), entropy ln 2.
    metrics = load_of([[5, 5, 5, 5], [10, 10, 0, 0]], 2, monkeypatch=monkeypatch)
    assert metrics["experts_used"] == [4.0, 2.0] and metrics["experts_used_min"] == 2.0
    assert metrics["expert_max_share"] == [0.5, 1.0] and metrics["expert_share_max"] == 1.0
    assert metrics["expert_shares"] == [1.0, 1.0, 0.0, 0.0] and metrics["expert_shares_layer"] == 1
    # aux = 4 sum f P: layer 0: 4 x 4 x 1/2 x 1/4 = 2 = k; layer 1: 4 x 2 x 1 x 1/2 = 4
    assert metrics["router_aux_loss"] == pytest.approx(3.0)
    assert metrics["expert_collapse"] is True


def test_a_collapse_is_warned_of(monkeypatch):
    bad = load_of([[5, 5, 5, 5], [0, 10, 10, 0]], 2, monkeypatch=monkeypatch) | {"step": 7}
    good = load_of([[5, 6, 5, 4]], 2, monkeypatch=monkeypatch) | {"step": 7}
    assert collapse_text(good) == "" and collapse_text({"step": 1}) == ""
    said = collapse_text(bad)
    assert "step 7" in said and "expert 1 has 100% of the tokens" in said and "of 4 experts" in said
    many = Experts(128, 8, 0.001)
    assert is_collapsed(19.9, many) and not is_collapsed(20.1, many)


# adapters


def test_an_adapter_leaves_experts_and_routers_as_they_are(mixture):
    model = AutoModelForCausalLM.from_pretrained(mixture)
    names = [name for name, _ in model.named_parameters()]
    lora.attach(model, LoraSettings(rank=2), str(mixture))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    places = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(trained) == 2 * 4 * 2  # layers, places, A and B
    assert [name for name, _, _ in lora.base_weights(model)] == names  # as engines know them


def test_an_adapter_that_would_reach_experts_by_their_names_is_refused(mixture):
    config = Qwen3MoeConfig.from_pretrained(mixture)
    config.mlp_only_layers = [0]  # a dense layer has gate_proj, up_proj and down_proj too
    with pytest.raises(UsageError, match=r"down_proj, gate_up_proj would get some"):
        lora.attach(Qwen3MoeForCausalLM(config), LoraSettings(rank=2), "model")


def test_a_dense_model_has_no_load(checkpoint):
    assert Experts.of(AutoModelForCausalLM.from_pretrained(checkpoint)) is None
