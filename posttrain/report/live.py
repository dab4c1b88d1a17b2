"""``posttrain watch``: the report of a run that goes on, served on loopback, fresh by itself.

Decides what it costs: a page is made when somebody asks for it, at most once every FRESH_S seconds
and only when the records have changed since. The page asks every POLL_S seconds whether there is a
newer one and loads it, except while a rollout is being read. Only this machine can connect, and
only under a loopback name, so that no web page can read it through a name of its own (DNS
rebinding). At most CONNECTIONS at a time, each for TIMEOUT_S seconds.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any

from posttrain.errors import UsageError
from posttrain.storage.run_dir import RunDir

FRESH_S = 3.0
POLL_S = 3.0
CONNECTIONS = 16
TIMEOUT_S = 10.0
_NAMES = ("127.0.0.1", "localhost")
_REFRESH = """<script>
"use strict";
setInterval(async () => {
  try {
    const newest = await (await fetch("/version")).text();
    if (newest === "VERSION") return;
    const reading = document.activeElement.closest("#rollouts");
    if (!reading) location.reload();
    else if (!document.title.startsWith("(new)")) document.title = "(new) " + document.title;
  } catch { /* the server is gone: what is here stays */ }
}, POLL_MS);
</script>"""


class LiveReport:
    """The newest page of a run. Raises UsageError when ``run`` is not one."""

    def __init__(self, run: Path) -> None:
        self.run = RunDir.open(run)
        self._lock = threading.Lock()
        self._made_at = float("-inf")
        self._page = b""
        self._version = ""

    def version(self) -> str:
        """Changes when there is something new to see."""
        path = self.run.metrics_path
        found = path.stat() if path.exists() else None
        state = "live" if self.run.lock.held_elsewhere() else "over"
        return f"{found.st_mtime_ns}-{found.st_size}-{state}" if found else state

    def page(self) -> bytes:
        """Made again only when it is old and something is new; callers wait for each other."""
        from posttrain.report.page import render

        with self._lock:
            version = self.version()
            if version != self._version and time.monotonic() - self._made_at >= FRESH_S:
                html = render([self.run.path])
                script = _REFRESH.replace("VERSION", version)
                script = script.replace("POLL_MS", str(round(1000 * POLL_S)))
                self._page = html.replace("</body>", script + "\n</body>").encode()
                self._version, self._made_at = version, time.monotonic()
            return self._page


class Server(ThreadingHTTPServer):
    """Serves one LiveReport on loopback; port 0 takes a free one.

    Raises UsageError when the port is taken.
    """

    daemon_threads = True

    def __init__(self, report: LiveReport, port: int = 0) -> None:
        self.report = report
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UsageError(f"can't listen on port {port}: {error.strerror}") from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def process_request(self, request: socket | tuple[bytes, socket], client: Any) -> None:
        """Beyond CONNECTIONS a connection is closed at once."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client: Any) -> None:
        try:
            super().process_request_thread(request, client)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client: Any) -> None:
        """A browser that goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: Server

    def do_GET(self) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0]
        if name not in _NAMES:
            self._send(403, b"only under a loopback name", "text/plain")
        elif self.path == "/version":
            self._send(200, self.server.report.version().encode(), "text/plain")
        elif self.path == "/":
            self._send(200, self.server.report.page(), "text/html")
        else:
            self._send(404, b"not here", "text/plain")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *message: Any) -> None:
        """The terminal stays quiet."""


def serve(run: Path, port: int) -> int:
    """Until Ctrl-C."""
    try:
        with Server(LiveReport(run), port) as server:
            print(f"{server.url}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        pass  # the ordinary end
    return 0
