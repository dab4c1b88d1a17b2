"""What a server says comes back as it is, by the right proxy; connections end in silence."""

import asyncio
import gc
import gzip
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards.http import MAX_BODY_BYTES, Answer, Connections, Lost


@contextmanager
def serving(status, content, headers=()):
    """A server with one answer to all; yields its address and the lines it was asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(content)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def post(url: str, *, close: bool = True) -> Answer:
    async def once() -> Answer:
        connections = Connections(url)
        try:
            return await connections.post("/v1", {"text": "\ud83d"}, {})
        finally:
            if close:
                await connections.close()

    return asyncio.run(once())


def test_an_error_a_redirect_and_a_packed_answer_come_back_whole():
    with serving(429, b"later", [("retry-after", "3")]) as (url, _):
        answer = post(url)
        assert (answer.status, answer.text, answer.headers["Retry-After"]) == (429, "later", "3")
    with serving(307, b"there", [("Location", "/elsewhere")]) as (url, asked):
        assert post(url).status == 307
        assert asked == ["/v1"]
    with serving(200, gzip.compress("é".encode()), [("Content-Encoding", "gzip")]) as (url, _):
        assert post(url).text == "é"


def test_what_is_no_whole_answer_is_lost():
    with serving(200, b"x" * (MAX_BODY_BYTES + 1)) as (url, _), pytest.raises(Lost, match="more"):
        post(url)
    with (
        serving(200, b"not packed", [("Content-Encoding", "gzip")]) as (url, _),
        pytest.raises(Lost),
    ):
        post(url)
    with pytest.raises(Lost, match="no answer from http://127.0.0.1:9"):
        post("http://127.0.0.1:9")


def test_a_proxy_of_the_environment_is_for_addresses_that_are_not_local(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(200, b"by proxy") as (proxy, asked), serving(200, b"direct") as (url, _):
        monkeypatch.setenv("http_proxy", proxy)
        assert post(url).text == "direct"
        assert post("http://far.invalid").text == "by proxy"
        assert asked == ["http://far.invalid/v1"]


def test_connections_that_nobody_closed_go_in_silence(caplog):
    with serving(200, b"") as (url, _), caplog.at_level(logging.DEBUG, logger="asyncio"):
        caplog.clear()
        post(url, close=False)
        gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
