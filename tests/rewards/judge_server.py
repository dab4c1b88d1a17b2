"""A judge's server in a thread of the tests: the real protocol, scripted behaviour."""

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "scripted"


@dataclass
class Asked:
    """One request as it came over the wire."""

    body: dict
    headers: dict
    number: int  # 0 is the first one

    @property
    def system(self):
        return self.body["messages"][0]["content"]

    @property
    def user(self):
        return self.body["messages"][1]["content"]

    @property
    def nonce(self):
        return re.match(r"The number of the real tags is ([0-9a-f]{16})\.", self.user)[1]

    @property
    def key(self):
        return re.findall(r'\{"key": "(k-[0-9a-f]{12})"', self.user)[-1]

    @property
    def schema(self):
        format_ = self.body.get("response_format")
        return format_ and format_["json_schema"]["schema"]

    def text(self, name):
        """What stands between the tags of ``name``."""
        tag = f"untrusted-{name}-{self.nonce}"
        return re.search(rf"<{tag}>\n(.*)\n</{tag}>", self.user, re.DOTALL)[1]

    def verdict(self, reason="because", **levels):
        """A whole verdict, as a good judge writes it."""
        return json.dumps({"key": self.key, "reason": reason, "verdict": levels})


@dataclass
class Reply:
    """What the server sends; ``content`` is the judge's text inside a chat completion."""

    content: object = ""
    status: int = 200
    headers: dict = field(default_factory=dict)
    finish: str = "stop"
    tokens: int = 100
    raw: bytes | None = None
    drop: bool = False  # close the connection without an answer
    after_s: float = 0.0
    refusal: str | None = None

    def bytes(self):
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.content}}).encode()
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], "usage": {"total_tokens": self.tokens}}).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 loses connections of a burst


class JudgeServer:
    """``behave(asked) -> str | Reply`` decides; ``asked`` holds all requests so far."""

    def __init__(self, behave):
        self.behave, self.asked, self.in_flight, self.most_in_flight = behave, [], 0, 0
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, body, headers):
        with self._lock:
            asked = Asked(body, headers, len(self.asked))
            self.asked.append(asked)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.behave(asked)
            reply = reply if isinstance(reply, Reply) else Reply(reply)
            self.ending.wait(reply.after_s)
            return reply
        finally:
            with self._lock:
                self.in_flight -= 1


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._send(200, {}, json.dumps({"data": [{"id": MODEL}]}).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.answer(body, dict(self.headers))
            if reply.drop:
                self.close_connection = True
                self.connection.close()
                return
            self._send(reply.status, reply.headers, reply.bytes())

        def _send(self, status, headers, content):
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has left

        def log_message(self, *_):
            pass

    return Handler


def in_turn(*replies):
    """The replies one after the other, the last one again and again; functions are called."""

    def behave(asked):
        reply = replies[min(asked.number, len(replies) - 1)]
        return reply(asked) if callable(reply) else reply

    return behave


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
