"""The embedded engine against plain transformers, on a random model of a few thousand weights."""

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.engines.embedded import EmbeddedEngine
from posttrain.errors import RunError
from posttrain.types import FinishReason, Request, Sampling, Snapshot

END = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.4,  # spread the distribution, so that samples differ
        eos_token_id=END,
    )
    path = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def _engine(checkpoint, **settings):
    defaults = dict(dtype="float32", max_probe_gap=1e-4, max_batch=64)
    return EmbeddedEngine(checkpoint, **(defaults | settings))


def _request(name, prompt, seed=0, max_tokens=12, temperature=1.0):
    sampling = Sampling(max_tokens, temperature, (END,))
    return Request(name, np.asarray(prompt, dtype=np.int64), sampling, seed)


def _run(engine, requests):
    async def play(request):
        try:
            return await engine.generate(request)
        finally:
            engine.leave()

    async def main():
        await engine.start()
        engine.admit(len(requests))
        return await asyncio.gather(*map(play, requests))

    return asyncio.run(main())


PROMPTS = [[5], [7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24, 25, 26, 27, 28]]


def test_logprobs_are_those_of_a_full_forward_pass(checkpoint):
    engine = _engine(checkpoint)
    requests = [_request(f"0-0-{i}", p, seed=i, temperature=0.7) for i, p in enumerate(PROMPTS)]
    completions = _run(engine, requests)
    model = Qwen3ForCausalLM.from_pretrained(checkpoint).eval()
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1] / 0.7, -1)
        expected = logprobs.gather(-1, ids[0, 1:, None])[-len(completion) :, 0]
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-5)


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(checkpoint):
    alone = _run(_engine(checkpoint), [_request("0-0-0", PROMPTS[1], seed=4)])[0]
    others = [_request(f"0-0-{i + 1}", p, seed=9 + i) for i, p in enumerate(PROMPTS)]
    beside = _run(_engine(checkpoint), [_request("0-0-0", PROMPTS[1], seed=4), *others])[0]
    other_seed = _run(_engine(checkpoint), [_request("0-0-0", PROMPTS[1], seed=5)])[0]
    assert alone.token_ids.tolist() == beside.token_ids.tolist()
    assert alone.token_ids.tolist() != other_seed.token_ids.tolist()


def test_the_same_requests_replay_bit_for_bit_in_any_order_of_arrival(checkpoint):
    requests = [_request(f"0-{i}-0", PROMPTS[i % 4], seed=i) for i in range(8)]
    first = _run(_engine(checkpoint), requests)
    second = _run(_engine(checkpoint), requests[::-1])[::-1]
    for one, two in zip(first, second, strict=True):
        assert one.token_ids.tobytes() == two.token_ids.tobytes()
        assert one.logprobs.tobytes() == two.logprobs.tobytes()


def test_sampling_follows_the_distribution(checkpoint):
    requests = [_request(f"0-0-{i}", PROMPTS[2], seed=i, max_tokens=1) for i in range(2000)]
    drawn = np.bincount(
        [int(c.token_ids[0]) for c in _run(_engine(checkpoint), requests)], minlength=61
    )
    model = Qwen3ForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([PROMPTS[2]])).logits[0, -1], -1).numpy()
    # each count is binomial: 5 standard deviations, over 61 tokens, fail once in 10^5 runs
    spread = 5 * np.sqrt(2000 * expected * (1 - expected)) + 1
    assert (np.abs(drawn - 2000 * expected) <= spread).all()


def test_greedy_stop_and_length(checkpoint):
    greedy = _request("0-0-0", PROMPTS[0], max_tokens=5, temperature=0.0)
    completion = _run(_engine(checkpoint), [greedy])[0]
    ids = list(PROMPTS[0])
    model = Qwen3ForCausalLM.from_pretrained(checkpoint).eval()
    while len(ids) < 1 + len(completion):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert completion.token_ids.tolist() == ids[1:]
    stopped = int(completion.token_ids[-1]) == END
    assert completion.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert stopped or len(completion) == 5


def _snapshot(checkpoint, tmp_path, change):
    model = Qwen3ForCausalLM.from_pretrained(checkpoint).eval()
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
    change(tensors)
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors.get(name, parameter))
    probe = torch.arange(4, 40)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(probe[None]).logits[0, :-1], -1)
    expected = logprobs.gather(-1, probe[1:, None])[:, 0].numpy()
    return Snapshot(7, path, probe.numpy(), expected)


def test_sync_changes_what_is_generated_and_its_version(checkpoint, tmp_path):
    def change(tensors):
        tensors["model.embed_tokens.weight"] *= 0.5

    snapshot = _snapshot(checkpoint, tmp_path, change)
    engine = _engine(checkpoint)

    async def main():
        await engine.start()
        report = await engine.sync(snapshot)
        engine.admit(1)
        return report, await engine.generate(_request("0-0-0", PROMPTS[0]))

    report, completion = asyncio.run(main())
    assert report.version == 7 and report.probe_gap < 1e-5
    assert set(completion.weight_versions.tolist()) == {7}


def test_a_sync_that_leaves_a_tensor_stale_is_refused(checkpoint, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] *= 1.5

    snapshot = _snapshot(checkpoint, tmp_path, change)
    engine = _engine(checkpoint)
    load = engine._load

    def load_but_norm(path):
        norm = engine._model.model.norm.weight.clone()
        load(path)
        engine._model.model.norm.weight.data.copy_(norm)

    engine._load = load_but_norm

    async def main():
        await engine.start()
        await engine.sync(snapshot)

    with pytest.raises(RunError, match="weight sync 7 was refused"):
        asyncio.run(main())


def test_a_snapshot_of_another_model_is_refused(checkpoint, tmp_path):
    snapshot = _snapshot(checkpoint, tmp_path, lambda tensors: tensors.pop("model.norm.weight"))

    async def main():
        engine = _engine(checkpoint)
        await engine.start()
        await engine.sync(snapshot)

    with pytest.raises(RunError, match=r"differ in 1 tensors.*model.norm.weight"):
        asyncio.run(main())
