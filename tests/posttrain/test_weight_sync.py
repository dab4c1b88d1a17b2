"""The weight sync as a transaction, on a real vLLM server."""

import asyncio
import dataclasses

import numpy as np
import pytest

from posttrain import weight_sync
from posttrain.client import VllmClient
from posttrain.weight_sync import SyncRefused, SyncRule

# Mean |engine - learner| in nats on this model, both in bf16, good syncs: 0.012 to 0.016.
NOISE = 0.03


def test_a_sync_makes_the_servers_weights_the_learners(vllm_engine, learner, loop, ask):
    for _ in range(3):
        learner.move()
        snapshot = learner.publish()
        report = loop(vllm_engine.sync(snapshot))
        assert (report.version, report.restarts) == (snapshot.version, 0)
        assert report.probe_gap < NOISE
        request = ask("after", prompt=range(9, 30), max_tokens=32)
        completion = loop(vllm_engine.generate(request))
        assert completion.weight_versions.tolist() == [snapshot.version] * 32
        assert learner.gap(request, completion).mean < NOISE


def test_the_canary_moves_the_probe_far_beyond_the_noise(vllm_engine, learner, loop):
    """Else a server that kept all of its old weights would pass the start-up check."""
    loop(vllm_engine.sync(learner.publish()))
    old = loop(vllm_engine.logprobs(learner.probe_ids, 1.0))
    learner.move(0.05)
    assert np.abs(old - learner.logprobs(learner.probe_ids)).mean() > 2 * 0.05


def test_tokens_of_a_request_in_flight_say_which_weights_wrote_them(
    vllm_engine, learner, loop, ask
):
    first = learner.publish()
    learner.move()
    second = learner.publish()

    async def sync_while_generating():
        await vllm_engine.sync(first)
        requests = [ask(i, seed=i, max_tokens=240) for i in range(32)]
        running = [asyncio.create_task(vllm_engine.generate(request)) for request in requests]
        await asyncio.sleep(0.4)
        await vllm_engine.sync(second)
        return await asyncio.gather(*running)

    completions = loop(sync_while_generating())
    assert {len(completion) for completion in completions} == {240}
    for completion in completions:
        steps = np.diff(completion.weight_versions)
        assert set(steps[steps != 0]) <= {second.version - first.version}  # old, then new
    assert any(len(set(completion.weight_versions)) == 2 for completion in completions)


def test_the_cache_of_other_weights_is_not_used_even_under_the_same_version(
    vllm_engine, learner, loop
):
    prompt = learner.probe_ids[:127]  # a whole block of the KV cache and more would be reused
    for _ in range(2):
        learner.move()
        loop(vllm_engine.sync(learner.publish(version=1000)))
        for temperature in (1.0, 0.9):
            found = loop(vllm_engine.logprobs(prompt, temperature))
            assert np.abs(found - learner.logprobs(prompt, temperature)).mean() < NOISE


def test_a_gap_above_the_limit_is_refused_whatever_the_cause(vllm_engine, learner, loop):
    snapshot = learner.publish()
    client = VllmClient(vllm_engine.urls[0], vllm_engine.limits)
    with pytest.raises(SyncRefused, match=r"verify: .* differ .* by 0\.0\d+ .* is 1e-06"):
        loop(weight_sync.apply(client, snapshot, SyncRule(1e-6, 30.0), salt="gap"))
    nan = dataclasses.replace(snapshot, probe_logprobs=snapshot.probe_logprobs * np.nan)
    with pytest.raises(SyncRefused, match=r"differ .* by nan"):
        loop(weight_sync.verify(client, nan, SyncRule(1.0, 30.0), salt="nan"))
    loop(client.close())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_after_a_refused_sync_the_server_is_restarted_refitted_and_verified(
    vllm_engine, learner, loop, ask
):
    client = VllmClient(vllm_engine.urls[0], vllm_engine.limits)
    broken = learner.publish(leave_out=["model.layers.1.self_attn.k_proj.weight"])
    with pytest.raises(SyncRefused, match=r"left 1 modules .*: model\.layers\.1\.self_attn"):
        loop(weight_sync.apply(client, broken, SyncRule(0.05, 30.0), salt="broken"))
    loop(client.close())
    report = loop(vllm_engine.sync(learner.publish()))
    assert report.restarts == 1
    assert report.probe_gap < NOISE
    request = ask("after", max_tokens=32)
    assert learner.gap(request, loop(vllm_engine.generate(request))).mean < NOISE


def test_a_stale_lm_head_is_refused(vllm_engine, faults, learner, loop):
    """A server without the re-packing of the tied head answers 200 to a sync, and lies."""
    learner.move()
    client = VllmClient(vllm_engine.urls[0], vllm_engine.limits)
    stale = weight_sync.apply(client, learner.publish(), SyncRule(0.05, 30.0), salt="stale")
    with (
        faults("stale_lm_head"),
        pytest.raises(SyncRefused, match=r"verify: on the probe .* by 0\.[1-9]"),
    ):
        loop(stale)
    loop(client.close())
    assert loop(vllm_engine.sync(learner.publish())).probe_gap < NOISE
