"""What goes over the wire, against a real vLLM server and plain transformers."""

import asyncio

import numpy as np
import pytest

from posttrain.engines.client import (
    ModelLimits,
    RequestTimedOut,
    ServerFailed,
    VllmClient,
    _completion,
)
from posttrain.errors import RunError
from posttrain.types import FinishReason

_LIMITS = ModelLimits(window=64, vocab_size=500)
NOISE = 0.03  # nats; bf16 on this model: see test_weight_sync


@pytest.fixture(scope="module")
def synced(vllm_engine, learner, loop):
    loop(vllm_engine.sync(learner.publish()))
    return vllm_engine


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_sampled_tokens_are_those_of_the_sampled_distribution(
    synced, learner, loop, ask, temperature
):
    requests = [
        ask(i, seed=i, prompt=range(5, 20), max_tokens=48, temperature=temperature)
        for i in range(4)
    ]

    async def together():
        return await asyncio.gather(*map(synced.generate, requests))

    for request, completion in zip(requests, loop(together()), strict=True):
        gap = learner.gap(request, completion)
        assert gap.n == 48
        assert gap.mean < NOISE


def test_logprobs_of_a_sequence_are_the_learners_at_any_temperature(synced, learner, loop):
    ids = learner.probe_ids[:40]
    for temperature in (1.0, 0.7):
        found = loop(synced.logprobs(ids, temperature))
        assert found.shape == (39,)
        assert np.abs(found - learner.logprobs(ids, temperature)).mean() < NOISE
    at_one = loop(synced.logprobs(ids, 1.0))
    assert np.abs(at_one - learner.logprobs(ids, 0.7)).mean() > 5 * NOISE  # it does matter


def test_a_request_sent_again_gives_the_same_tokens_and_another_seed_others(synced, loop, ask):
    async def thrice():
        return [await synced.generate(ask(n, seed=s)) for n, s in (("a", 7), ("b", 7), ("c", 8))]

    first, again, other = loop(thrice())
    assert first.token_ids.tolist() == again.token_ids.tolist()
    assert first.token_ids.tolist() != other.token_ids.tolist()


def test_a_stop_token_ends_the_completion_and_is_part_of_it(synced, loop, ask):
    free = loop(synced.generate(ask("free", seed=1)))
    assert (free.finish_reason, len(free)) == (FinishReason.LENGTH, 16)
    stop = int(free.token_ids[4])
    first = free.token_ids.tolist().index(stop)
    stopped = loop(synced.generate(ask("stopped", seed=1, stop=[stop])))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids.tolist() == free.token_ids.tolist()[: first + 1]


def test_only_named_tokens_stop_it_not_the_models_own_end_token(synced, loop, ask):
    prompts = [range(5 + i, 20 + i) for i in range(16)]

    async def together():
        return await asyncio.gather(
            *(synced.generate(ask(i, prompt=p, max_tokens=200)) for i, p in enumerate(prompts))
        )

    written = loop(together())
    assert {len(completion) for completion in written} == {200}
    assert any(3 in completion.token_ids for completion in written)  # 3 is the end token


def test_more_prompts_at_once_than_one_step_prefills_do_no_harm(synced, loop, ask):
    """Split prompts end vLLM's engine on CPU when their request has a seed."""
    requests = [ask(i, seed=i, prompt=np.full(240, 5 + i), max_tokens=4) for i in range(60)]

    async def together():
        return await asyncio.gather(*map(synced.generate, requests))

    assert [len(completion) for completion in loop(together())] == [4] * 60
    assert synced.restarts == 0


def test_greedy_takes_the_likeliest_token(synced, learner, loop, ask):
    request = ask("greedy", temperature=0.0, max_tokens=1)
    token = int(loop(synced.generate(request)).token_ids[0])
    assert token == learner.likeliest(request.prompt_ids)


def test_a_completion_ends_at_the_window(synced, loop, ask):
    completion = loop(synced.generate(ask("long", prompt=range(4, 250), max_tokens=64)))
    assert (len(completion), completion.finish_reason) == (256 - 246, FinishReason.LENGTH)


def test_a_prompt_that_fills_the_window_is_an_error_that_says_so(synced, loop, ask):
    with pytest.raises(RunError, match=r"request full: a prompt of 256 tokens .* window of 256"):
        loop(synced.generate(ask("full", prompt=np.full(256, 5))))


@pytest.mark.parametrize("token", [-1, 500])
def test_a_token_outside_the_vocabulary_does_not_reach_the_server(synced, loop, ask, token):
    with pytest.raises(RunError, match=rf"request odd: token id {token} is outside .* of 500"):
        loop(synced.generate(ask("odd", prompt=[5, token])))


def test_a_refused_request_is_an_error_with_the_servers_words(synced, loop, ask):
    client = VllmClient(synced.urls[0], synced.limits)
    with pytest.raises(RunError, match=r"request x: .*/generate answered 400: .*cache_salt"):
        loop(client.generate(ask("x"), salt="", timeout_s=30))
    loop(client.close())


def test_a_server_that_is_not_there_is_told_from_a_refusal(loop, ask):
    client = VllmClient("http://127.0.0.1:9", _LIMITS)
    with pytest.raises(ServerFailed, match="request x: http://127.0.0.1:9 did not answer"):
        loop(client.generate(ask("x"), salt="s", timeout_s=5))


def test_a_server_that_says_nothing_is_given_up_at_the_deadline(loop, ask):
    async def ask_a_mute_server():
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        client = VllmClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", _LIMITS)
        try:
            await client.generate(ask("x"), salt="s", timeout_s=0.2)
        finally:
            await client.close()
            server.close()

    with pytest.raises(RequestTimedOut, match=r"request x: no answer from .* in 0.2 s"):
        loop(ask_a_mute_server())


def _answer(finish_reason="stop", logprobs=(-0.5, -1.5, -2.5)):
    return {
        "choices": [
            {
                "finish_reason": finish_reason,
                "token_ids": [4, 5, 6],
                "logprobs": {"content": [{"logprob": value} for value in logprobs]},
                "weight_versions": [
                    {"version": "7", "start": 0, "end": 1},
                    {"version": "8", "start": 1, "end": 3},
                ],
            }
        ]
    }


def test_each_token_carries_the_version_that_wrote_it():
    completion = _completion(_answer(), "request x")
    assert completion.weight_versions.tolist() == [7, 8, 8]
    assert completion.logprobs.tolist() == [-0.5, -1.5, -2.5]


def test_an_aborted_completion_is_not_taken_for_a_finished_one():
    with pytest.raises(ServerFailed, match="request x: the engine ended it with 'abort'"):
        _completion(_answer(finish_reason="abort"), "request x")


def test_a_missing_logprob_is_not_taken_for_a_small_one():
    with pytest.raises(RunError, match="no finite log-prob"):
        _completion(_answer(logprobs=(-0.5, -9999.0, -1.0)), "request x")
