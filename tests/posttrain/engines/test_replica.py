"""Quarantine, restart and resending, against a server that fails on command."""

import asyncio
import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from posttrain.engines import replica, vllm_engine
from posttrain.engines.replica import State
from posttrain.engines.vllm_engine import VllmEngine
from posttrain.errors import RunError
from posttrain.types import Snapshot
from tests.posttrain.engines.fake_vllm import FakeVllm

PROBE = np.array([5, 6, 7], dtype=np.int64)


def snapshot(version, path="weights.safetensors"):
    return Snapshot(version, path and Path(path), PROBE, np.zeros(2, dtype=np.float32))


@pytest.fixture
def play(vllm_config, monkeypatch, tmp_path):
    """``play(story, *fakes)`` runs ``story(engine)`` on an engine over fake servers."""

    def run(story, *fakes, max_restarts=3, **rollout):
        monkeypatch.setattr(vllm_engine, "_servers", lambda *ignored: list(fakes))

        async def main():
            engine = VllmEngine(vllm_config(**rollout), tmp_path, max_restarts=max_restarts)
            await engine.start()
            try:
                async with asyncio.timeout(20):
                    return await story(engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    return run


def test_the_phases_of_a_sync_come_in_order_and_nothing_is_written_before_resume(play):
    fake = FakeVllm()

    async def story(engine):
        return await engine.sync(snapshot(3))

    report = play(story, fake)
    assert (report.version, report.probe_gap, report.restarts) == (3, 0.0, 0)
    assert fake.seen[1:] == [  # the first is a sign of life
        "/pause?mode=keep",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/resume",
        "/inference/v1/generate",
    ]


def test_weights_sent_over_a_collective_are_only_resumed_and_verified(play):
    fake = FakeVllm()

    async def story(engine):
        return await engine.sync(snapshot(3, path=None))

    assert play(story, fake).version == 3
    assert fake.seen[1:] == ["/resume", "/inference/v1/generate"]


@pytest.mark.parametrize("phase", ["pause", "start", "update", "finish", "resume"])
def test_a_fault_in_any_phase_stops_the_run_with_its_name_and_the_log(play, phase):
    async def story(engine):
        await engine.sync(snapshot(4))

    with pytest.raises(RunError, match=r"(?s)weight sync 4, .*planted fault.*last line of its log"):
        play(story, FakeVllm(broken_phase=phase), max_restarts=0)


def test_a_stale_server_is_restarted_and_refitted_until_it_is_right(play):
    fake = FakeVllm(gaps=[0.7, 0.7, 0.01])

    async def story(engine):
        return await engine.sync(snapshot(1))

    report = play(story, fake, max_restarts=3)
    assert (report.restarts, fake.starts) == (2, 3)
    assert report.probe_gap == pytest.approx(0.01)


def test_a_server_that_stays_stale_is_given_up_after_max_restarts(play):
    fake = FakeVllm(gaps=[0.7])

    async def story(engine):
        await engine.sync(snapshot(1))

    with pytest.raises(RunError, match=r"(?s)by 0\.7000.*restarted 2 times .*all it gets"):
        play(story, fake, max_restarts=2)
    assert fake.starts == 3


def test_a_restart_that_fails_is_tried_again(play, ask):
    fake = FakeVllm(fail_starts=1)

    async def story(engine):
        await fake.stop()
        return await engine.generate(ask("x"))

    assert len(play(story, fake, max_restarts=2)) == 1
    assert fake.starts == 3


def test_a_completion_that_ends_during_a_sync_counts_only_when_the_sync_is_verified(play, ask):
    """The first sync is refused: tokens written meanwhile are dropped and asked for again."""
    fake = FakeVllm(gaps=[0.0, 0.7, 0.0])

    async def story(engine):
        await engine.sync(snapshot(1))
        fake.release.clear()
        running = asyncio.create_task(engine.generate(ask("held")))
        await asyncio.sleep(0.1)
        syncing = asyncio.create_task(engine.sync(snapshot(2)))
        fake.release.set()
        return await syncing, await running

    report, completion = play(story, fake)
    assert (report.version, report.restarts) == (2, 1)
    assert completion.weight_versions.tolist() == [2]


def test_requests_of_a_dead_server_go_to_the_other_one(play, ask):
    first, second = FakeVllm(), FakeVllm()

    async def story(engine):
        await engine.sync(snapshot(1))
        first.release.clear()
        running = [asyncio.create_task(engine.generate(ask(i))) for i in range(8)]
        await asyncio.sleep(0.1)
        await first.stop()
        return await asyncio.gather(*running)

    assert [c.weight_versions.tolist() for c in play(story, first, second)] == [[1]] * 8


def test_a_request_slower_than_its_deadline_on_a_healthy_server_is_blamed_on_the_request(play, ask):
    fake = FakeVllm()

    async def story(engine):
        fake.answers_requests = False
        await engine.generate(ask("slow"))

    with pytest.raises(RunError, match=r"request slow: no answer .* 0\.3 s, though the server is"):
        play(story, fake, request_timeout_s=0.3)
    assert fake.starts == 1


def test_a_server_elsewhere_that_was_out_of_reach_is_refitted_as_it_is(play, ask, monkeypatch):
    """What it was asked is asked of the other one at once, not at the request's deadline."""
    monkeypatch.setattr(vllm_engine, "_MONITOR_EVERY_S", 0.05)
    first, second = FakeVllm(elsewhere=True), FakeVllm()

    async def story(engine):
        await engine.sync(snapshot(1))
        first.release.clear()
        running = [asyncio.create_task(engine.generate(ask(i))) for i in range(8)]
        await asyncio.sleep(0.1)
        first.seen.clear()
        first.healthy = False
        completions = await asyncio.gather(*running)
        first.release.set()
        first.healthy = True
        while engine._replicas[0].state is not State.READY:
            await asyncio.sleep(0.01)
        return completions, first.seen.copy(), first.ended

    completions, seen, ended = play(story, first, second)
    assert [c.weight_versions.tolist() for c in completions] == [[1]] * 8
    assert "/update_weights" in seen
    assert ended == 0


def test_a_server_elsewhere_whose_weights_are_wrong_is_ended(play):
    first = FakeVllm(elsewhere=True, gaps=[0.7, 0.0])

    async def story(engine):
        await engine.sync(snapshot(1))
        return first.ended

    assert play(story, first) == 1


def test_weights_from_a_collective_cannot_be_given_to_a_restarted_server(play, ask):
    fake = FakeVllm()

    async def story(engine):
        await engine.sync(snapshot(1, path=None))
        await fake.stop()
        await engine.generate(ask("x"))

    with pytest.raises(RunError, match="came over a collective"):
        play(story, fake)


def test_an_unhealthy_server_is_restarted_by_the_monitor(play, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_MONITOR_EVERY_S", 0.05)
    fake = FakeVllm()

    async def story(engine):
        fake.healthy = False
        while engine.restarts == 0 or fake.starts < 2:
            await asyncio.sleep(0.02)

    play(story, fake)
    assert fake.starts == 2


def test_a_check_during_which_this_process_stood_still_is_made_again(play, monkeypatch):
    monkeypatch.setattr(replica, "HEALTH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(replica, "_STOOD_STILL_S", 0.2)
    fake = FakeVllm()

    async def story(engine):
        (one,) = engine._replicas
        healthy, asked = one.client.healthy, []

        async def held_up(timeout_s):
            asked.append(timeout_s)
            if len(asked) == 1:
                time.sleep(0.5)
                return False  # its deadline was over when the answer was seen
            return await healthy(timeout_s)

        monkeypatch.setattr(one.client, "healthy", held_up)
        well = await one.is_well()
        fake.healthy = False
        return well, len(asked), await one.is_well()

    assert play(story, fake) == (True, 2, False)


def test_no_more_requests_are_in_flight_than_asked_for(play, ask):
    fake = FakeVllm()

    async def story(engine):
        fake.release.clear()
        running = [asyncio.create_task(engine.generate(ask(i))) for i in range(10)]
        await asyncio.sleep(0.3)
        held = engine._replicas[0].in_flight
        fake.release.set()
        await asyncio.gather(*running)
        return held

    assert play(story, fake, max_concurrency=4) == 4


def test_a_slow_server_gets_its_share_of_a_burst_and_no_more(play, ask):
    """Sixteen times as slow, or nearly: what it was given first tells its pace."""
    slow, fast = FakeVllm(token_s=0.48), FakeVllm(token_s=0.03)

    async def story(engine):
        await asyncio.gather(*(engine.generate(ask(i)) for i in range(4)))
        before = slow.completions, fast.completions
        await asyncio.gather(*(engine.generate(ask(i)) for i in range(51)))
        return before, slow.completions - before[0]

    before, of_the_burst = play(story, slow, fast)
    assert before == (3, 3)  # two each, and a sign of life at the start
    assert 2 <= of_the_burst <= 16  # 3 by their paces, 25 by their numbers


def test_what_waits_for_a_slot_goes_by_the_age_of_its_step(play, ask):
    fake = FakeVllm(token_s=0.01)
    order = []

    async def story(engine):
        async def one(name, step):
            await engine.generate(dataclasses.replace(ask(name), step=step))
            order.append(name)

        await asyncio.gather(one("first", 7), one("later", 7), one("refill", 6), one("last", 8))

    play(story, fake, max_concurrency=1)
    assert order == ["first", "refill", "later", "last"]


def test_an_engine_is_busy_while_a_request_runs_and_not_while_it_is_paused(play, ask):
    fake = FakeVllm()

    async def story(engine):
        await engine.sync(snapshot(1))
        assert engine.busy_s == 0.0
        fake.release.clear()
        running = asyncio.create_task(engine.generate(ask("x")))
        await asyncio.sleep(0.2)
        alone = engine.busy_s
        fake.paused = asyncio.Event()  # a sync that takes its time
        syncing = asyncio.create_task(engine.sync(snapshot(2)))
        await asyncio.sleep(0.1)
        early = engine.busy_s
        await asyncio.sleep(0.2)
        during = engine.busy_s - early
        fake.paused.set()
        await syncing
        fake.release.set()
        await running
        return alone, during

    alone, during = play(story, fake)
    assert 0.15 < alone < 1.0
    assert during == 0.0


def test_servers_share_the_requests_evenly(play, ask):
    """Two real servers in one run, and that they leave nothing behind: tests/test_main_job.py."""
    fakes = FakeVllm(), FakeVllm()

    async def story(engine):
        for fake in fakes:
            fake.release.clear()
        running = [asyncio.create_task(engine.generate(ask(i))) for i in range(16)]
        await asyncio.sleep(0)  # each picks its server
        shares = [replica.in_flight for replica in engine._replicas]
        for fake in fakes:
            fake.release.set()
        return shares, len(await asyncio.gather(*running))

    assert play(story, *fakes) == ([8, 8], 16)
