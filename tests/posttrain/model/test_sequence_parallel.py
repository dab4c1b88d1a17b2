"""Ranks that share rows: the same log-probs, gradients and metrics as one rank that has them."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from posttrain.batching import pack
from posttrain.config import make_config
from posttrain.errors import UsageError
from posttrain.learner.process import make_learner
from posttrain.model.sequence_parallel import Shard, can_share
from posttrain.preflight import check_model, check_settings
from posttrain.types import Sample

VOCABULARY = 60
RATE = 1e-3
PROBE = np.arange(2, 43)  # 41 tokens: filled up to what two ranks can share
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True,
    "initializer_range": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One key-value head, which two ranks must repeat; and a mixture of experts."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES)).save_pretrained(folder / "dense")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    experts |= {"router_aux_loss_coef": 0.5, "num_key_value_heads": 2}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**(SIZES | experts))).save_pretrained(folder / "mixture")
    return folder


def config_of(model, algorithm=None, **learner):
    plain = {"ranks": 0, "dtype": "float32", "learning_rate": RATE, "warmup_steps": 0}
    plain |= {"tokens_per_row": 96, "threads": 1}
    tree = {"model": str(model), "env": "none", "algorithm": algorithm or {}}
    return make_config(tree | {"learner": plain | learner})


def make_samples(seed, n=10):
    """Answers of one prompt, so that tokens are shared."""
    rng = np.random.default_rng(seed)
    prompt, samples = rng.integers(0, VOCABULARY, 5), []
    for i in range(n):
        length = int(rng.integers(8, 40))
        mask = np.arange(length) >= 5
        ids = np.concatenate([prompt, rng.integers(0, VOCABULARY, length - 5)])
        logprobs = np.where(mask, rng.normal(-4, 0.2, length), 0).astype(np.float32)
        advantages = np.where(mask, rng.normal(), 0).astype(np.float32)
        samples.append(Sample(ids, mask, logprobs, advantages, np.zeros(length, np.int64), str(i)))
    return samples


def trained(config, folder, with_returns=False):
    """Metrics of three steps, log-probs and weights after them, and what is said of a batch."""

    async def main():
        learner = make_learner(config, PROBE, folder)
        try:
            await learner.start()
            assert learner.world_size == config.learner.data_parallel
            metrics = []
            for step in range(3):
                samples = make_samples(step)
                if with_returns:
                    samples = [
                        _with_returns(sample, np.random.default_rng(step)) for sample in samples
                    ]
                batch = pack(samples, 96, learner.world_size, step)
                metrics.append((await learner.train(batch)).metrics)
            what = "values" if with_returns else "reference"
            said = await learner.examine(batch, what)
            logprobs = await learner.logprobs([PROBE, PROBE[:7]], 0.8)
            weights = load_file((await learner.publish(1, folder)).path)
            return metrics, said, np.concatenate(logprobs), weights
        finally:
            await learner.close()

    return asyncio.run(main())


def _with_returns(sample, rng):
    n = len(sample.token_ids)
    values, returns = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    return dataclasses.replace(sample, values=values, returns=returns)


@pytest.mark.parametrize(
    ("model", "algorithm", "learner"),
    [
        ("dense", {"kl": {"name": "k3", "coef": 0.1}, "entropy_coef": 0.01}, {"zero_stage": 0}),
        ("mixture", {"advantage": "gae"}, {"zero_stage": 3}),
    ],
)
def test_two_ranks_that_share_rows_are_one_rank(models, tmp_path, model, algorithm, learner):
    critic = "advantage" in algorithm
    one = trained(config_of(models / model, algorithm), tmp_path / "one", critic)
    shared = learner | {"ranks": 2, "sequence_parallel": 2}
    two = trained(config_of(models / model, algorithm, **shared), tmp_path / "two", critic)
    for alone, both in zip(one[0], two[0], strict=True):
        names = {"loss", "grad_norm", "entropy", "trained_tokens", "learner_tokens"}
        names |= {"router_aux_loss", "experts_used_min", "kl_ref", "value_loss"}
        names &= alone.keys()
        for name in names:
            assert both[name] == pytest.approx(alone[name], rel=2e-4), name
    for a, b in zip(one[1][0], two[1][0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(one[2], two[2], atol=2e-3)  # after three steps of Adam
    for name, weight in one[3].items():
        off = (two[3][name] - weight).abs() > 0.05 * RATE
        assert off.float().mean() < 0.01, name


def test_the_parts_of_a_row_make_it_whole(monkeypatch):
    """Two ranks by hand: what each computes of its targets, and the gradient that each takes."""
    before = torch.tensor([0, 5, 2, 7, 3])  # of 8 packed tokens
    shards = [Shard(rank, 2, None) for rank in range(2)]
    parts = [shard.targets(before, 8) for shard in shards]
    assert [mine.tolist() for mine, _ in parts] == [[0, 2, 4], [1, 3]]
    assert [at.tolist() for _, at in parts] == [[0, 2, 3], [1, 3]]
    assert [shard.own(torch.arange(8)).tolist() for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    others = torch.tensor([0.0, 11.0, 0.0, 13.0, 0.0])  # what the second rank adds
    monkeypatch.setattr("torch.distributed.all_reduce", lambda whole, group: whole.add_(others))
    values = torch.tensor([10.0, 12.0, 14.0], requires_grad=True)
    whole = shards[0].whole(values, parts[0][0], 5)
    assert whole.tolist() == [10, 11, 12, 13, 14]
    (whole * torch.arange(5.0)).sum().backward()
    assert values.grad.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("model", "learner", "says"),
    [
        ("dense", {"ranks": 3, "sequence_parallel": 2}, "must be a multiple of it, and is 3"),
        ("dense", {"ranks": 3, "sequence_parallel": 3}, "3 ranks can't share the 4 heads"),
        ("dense", {"memory_savings": ["offload"]}, 'has "offload", which is a part of ZeRO'),
        ("mixture", {"lora": {"rank": 4, "bits": 4}}, "most weights of .* are experts"),
    ],
)
def test_what_cannot_work_is_refused(models, model, learner, says):
    config = config_of(models / model, **learner)
    with pytest.raises(UsageError, match=says):
        check_model(check_settings(config))


def test_which_heads_can_be_shared():
    def sizes(heads, key_heads):
        return Qwen3Config(num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=8)

    can = {size for size in range(1, 9) if can_share(sizes(8, 2), size)}
    assert can == {1, 2, 4, 8} and not can_share(sizes(12, 8), 3)
