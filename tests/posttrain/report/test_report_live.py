"""``posttrain watch``: a fresh page on loopback, for this machine only, until Ctrl-C."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.config import GrpoConfig
from posttrain.report import live
from posttrain.report.live import CONNECTIONS, LiveReport, Server
from posttrain.storage.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    config = GrpoConfig.model_validate({"model": "m", "env": "e", "grpo": {"steps": 9}})
    with RunDir.create(tmp_path / "r", config) as run:
        run.log({"kind": "step", "step": 0, "reward_mean": 0.5})
        yield run


@pytest.fixture
def server(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(live, "FRESH_S", 0.0)
    with Server(LiveReport(run.path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def get(server: Server, path: str, host: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_page_follows_the_run(server: Server, run: RunDir) -> None:
    first = get(server, "/version")[1]
    status, page = get(server, "/")
    assert status == 200
    assert "1 of 9" in page
    assert f'newest === "{first}"' in page  # the page knows which one it is
    assert get(server, "/version")[1] == first
    run.log({"kind": "step", "step": 1, "reward_mean": 0.6})
    assert get(server, "/version")[1] != first
    assert "2 of 9" in get(server, "/")[1]


def test_a_page_is_not_made_again_before_its_time(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FRESH_S", 1000.0)
    report = LiveReport(run.path)
    page = report.page()
    run.log({"kind": "step", "step": 1, "reward_mean": 0.6})
    assert report.page() is page


def test_only_under_a_loopback_name(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/", "evil.example:80")[0] == 403
    assert get(server, "/version", f"localhost:{server.server_port}")[0] == 200
    assert get(server, "/config.json")[0] == 404


def test_idle_connections_have_a_bound(server: Server) -> None:
    idle = [socket.create_connection(server.server_address[:2], 10) for _ in range(CONNECTIONS)]
    try:
        with socket.create_connection(server.server_address[:2], 10) as one_more:
            assert one_more.recv(1) == b""  # closed at once
    finally:
        for connection in idle:
            connection.close()


def test_a_port_that_is_taken(
    server: Server, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(run.path), "--port", str(server.server_port)]) == 2
    assert f"can't listen on port {server.server_port}" in capsys.readouterr().err


def test_ctrl_c_ends_it(run: RunDir) -> None:
    command = [sys.executable, "-m", "posttrain.cli", "watch", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
