"""The weight sync as a transaction, on a real vLLM server."""

import asyncio
import dataclasses

import numpy as np
import pytest

from posttrain.engines import weight_sync
from posttrain.engines.client import VllmClient
from posttrain.engines.vllm_engine import VllmEngine
from posttrain.engines.weight_sync import SyncRefused, SyncRule
from posttrain.errors import RunError

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


def test_a_completion_that_spans_a_sync_has_each_tokens_own_version_and_logprob(
    vllm_engine, learner, loop, ask
):
    """It is paused, its cache is computed anew, and it goes on under the new weights."""
    first = learner.publish()
    learner.move()
    second = learner.publish()
    requests = [ask(i, seed=i, max_tokens=240) for i in range(16)]

    async def sync_while_generating():
        await vllm_engine.sync(first)
        running = [asyncio.create_task(vllm_engine.generate(request)) for request in requests]
        await asyncio.sleep(0.8)
        report = await vllm_engine.sync(second)
        return report, await asyncio.gather(*running)

    report, completions = loop(sync_while_generating())
    assert report.restarts == 0
    assert {len(completion) for completion in completions} == {240}  # nothing lost or repeated
    versions = np.stack([completion.weight_versions for completion in completions])
    assert set(versions.flat) == {first.version, second.version}
    assert (np.diff(versions) >= 0).all()  # old, then new
    by_new = versions == second.version
    spanning = by_new.any(1) & ~by_new.all(1)
    assert spanning.sum() >= 8, "the sync came before or after them"
    to_new = np.stack([_gaps(learner, *pair) for pair in zip(requests, completions, strict=True)])
    with learner.at(first):
        to_old = np.stack(
            [_gaps(learner, *pair) for pair in zip(requests, completions, strict=True)]
        )
    assert to_old[~by_new].mean() < NOISE and to_new[by_new].mean() < NOISE
    # weights that did not write a token are far from its log-prob: a wrong version would show
    assert to_new[~by_new].mean() > 4 * NOISE and to_old[by_new].mean() > 4 * NOISE
    # so would a cache of the old weights, most of all right behind the swap
    at_swap = [gaps[new][:3] for gaps, new in zip(to_new[spanning], by_new[spanning], strict=True)]
    assert np.concatenate(at_swap).mean() < 2 * NOISE


def _gaps(learner, request, completion):
    """|engine - learner| of each token of a completion."""
    ids = np.concatenate([request.prompt_ids, completion.token_ids])
    return np.abs(learner.logprobs(ids)[len(request.prompt_ids) - 1 :] - completion.logprobs)


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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_stale_lm_head_is_refused(vllm_config, learner, loop, tmp_path):
    """A server without the re-packing of the tied head answers 200 to a sync, and lies."""
    pytest.importorskip("vllm")
    engine = VllmEngine(
        vllm_config(),
        tmp_path,
        max_restarts=0,
        worker_extension="tests.posttrain.engines.stale_lm_head.WorkerExtension",
    )

    async def canary():
        await engine.start()
        try:
            await engine.sync(learner.publish())
        finally:
            await engine.close()

    learner.move()
    with pytest.raises(RunError, match=r"verify: on the probe .* by 0\.[1-9]") as refusal:
        loop(canary())
    assert "server-0.log" in str(refusal.value)
