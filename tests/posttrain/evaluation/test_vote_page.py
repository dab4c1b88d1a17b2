"""The voting page: blind, durable, closed to other sites; and its keys in a real browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UsageError
from posttrain.evaluation.answers import Answered
from posttrain.evaluation.vote_page import Poll, _handler, make_server
from posttrain.evaluation.votes import read_votes

PAIRS = [
    Answered(f"t{i}", f"q{i}", f"<think>a</think>from a {i}", f"from b {i}") for i in range(20)
]


def poll_at(out: Path, *, seed: int = 0, pairs: list[Answered] = PAIRS) -> Poll:
    return Poll(("model-a", "model-b"), pairs, out, "me", seed)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def ask(port: int, method: str, path: str, **more: Any) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, more.get("body"), more.get("headers", {}))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_votes_over_http_are_blind_and_put_back_in_order(tmp_path: Path) -> None:
    out = tmp_path / "votes.jsonl"
    poll = poll_at(out)
    on_the_left = []
    with serving(make_server(poll)) as port:
        status, page = ask(port, "GET", "/")
        token = re.findall(r'"X-Token": "([\w-]+)"', page)[0]
        seen = page
        text = ask(port, "GET", "/question")[1]
        while "task" in (question := json.loads(text)):
            seen += text
            side = "left" if question["left"].startswith("from a") else "right"
            on_the_left.append(side == "left")
            body = json.dumps({"task": question["task"], "choice": side})
            status, text = ask(port, "POST", "/vote", body=body, headers={"X-Token": token})
            assert status == 200
    poll.close()
    assert "model-" not in seen and "<think>" not in seen
    assert (question["done"], question["total"]) == (20, 20)
    votes = read_votes(out)
    assert [(v.a, v.b, v.winner, v.task) for v in votes] == [
        ("model-a", "model-b", "a", one.task) for one in PAIRS
    ]
    assert 5 <= sum(on_the_left) <= 15


def test_a_restart_goes_on_and_later_is_last(tmp_path: Path) -> None:
    out = tmp_path / "votes.jsonl"
    poll = poll_at(out)
    first = poll.question()
    assert poll.vote("t0", "tie") and poll.vote("t1", "skip")
    assert not poll.vote("t1", "left")  # another is asked
    assert not poll.vote("t2", "both")
    assert poll.question()["task"] == "t2"
    poll.close()
    again = poll_at(out)
    assert (again.done, again.question()["task"]) == (1, "t1")
    other = poll_at(tmp_path / "other.jsonl").question()
    assert (other["left"], other["right"]) == (first["left"], first["right"])
    assert [v.winner for v in read_votes(out)] == ["tie"]
    again.close()
    out.write_text('{"prompt": "no vote"}\n')
    with pytest.raises(UsageError, match="a vote has the models"):
        poll_at(out)


def test_other_sites_cannot_vote(tmp_path: Path) -> None:
    poll = poll_at(tmp_path / "votes.jsonl")
    body = json.dumps({"task": "t0", "choice": "left"})
    with serving(make_server(poll)) as port:
        assert ask(port, "POST", "/vote", body=body)[0] == 403
        assert ask(port, "GET", "/question", headers={"Host": "evil.example:80"})[0] == 403
        token = re.findall(r'"X-Token": "([\w-]+)"', ask(port, "GET", "/")[1])[0]
        headers = {"X-Token": token}
        assert ask(port, "POST", "/vote", body="[1]", headers=headers)[0] == 400
        assert ask(port, "POST", "/vote", body="x" * 20_000, headers=headers)[0] == 400
        assert ask(port, "GET", "/other")[0] == 404
        assert ask(port, "POST", "/vote", body=body, headers=headers)[0] == 200
        assert ask(port, "POST", "/vote", body=body, headers=headers)[0] == 409  # a second time
        with pytest.raises(UsageError, match="cannot be had"):
            make_server(poll, port)
    poll.close()


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(browser() is None, reason="no Chromium here")
def test_the_keys_vote_in_a_browser(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='pwned'\">"
    pairs = [Answered("t0", evil, evil, evil), *PAIRS[1:4]]
    poll = poll_at(tmp_path / "votes.jsonl", pairs=pairs)
    page = files("posttrain.evaluation").joinpath("vote.html").read_text()
    pressed = """<script>
        const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
        const order = ["ArrowLeft", "s", "ArrowRight"];
        order.forEach((key, i) => setTimeout(press, 1500 * (i + 1), key));
        </script>"""
    handler = _handler(poll, page.replace("__TOKEN__", "secret") + pressed, "secret")
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
            "--disable-background-networking --disable-component-update --dump-dom "
            "--virtual-time-budget=10000"
        )
        profile, url = f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{port}/"
        command = [browser() or "", *flags.split(), profile, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    poll.close()
    assert "2 of 4 done" in done.stdout and "<title>Vote</title>" in done.stdout
    left = {one.task: poll_at(tmp_path / "x", pairs=[one]).question()["left"] for one in pairs}
    first, second = read_votes(tmp_path / "votes.jsonl")
    assert (first.task, second.task) == ("t0", "t2")  # t1 was put off
    assert second.winner == ("b" if left["t2"].startswith("from a") else "a")
