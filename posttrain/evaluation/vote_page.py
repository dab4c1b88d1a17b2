"""``posttrain vote``: a local page on which a person votes blind between two models' answers.

It listens on loopback alone. The page is told neither the models nor which side is whose: sides
are drawn for each question from the seed, and the vote is put back in order here. A vote is on
disk before the next question is shown; a vote file that exists is gone on with, and questions it
has a vote of this voter and these two models on are not asked again.

Another site's page can reach a server on loopback through the browser, so requests must name this
host, and votes must carry the token that only the page has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UsageError
from posttrain.evaluation.judge_pairs import add_answers, read_sides

if TYPE_CHECKING:
    from posttrain.evaluation.answers import Answered

_CHOICES = {"left", "right", "tie", "skip"}
_MOST_BYTES = 10_000  # of a vote


def add_parser(commands: Any) -> None:
    """The command; nothing heavy is imported before it runs."""
    one = commands.add_parser("vote", help="a local page to vote blind between two answers")
    add_answers(one)
    one.add_argument("--voter", default="person", help="kept with each vote")
    one.add_argument("--seed", type=int, default=0, help="of the sides")
    one.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")
    one.set_defaults(run=_vote)


class Poll:
    """What is asked, what was voted; safe under threads."""

    def __init__(
        self, names: tuple[str, str], pairs: Sequence[Answered], out: Path, voter: str, seed: int
    ) -> None:
        from posttrain.storage.jsonl import JsonLines

        self._names, self._voter, self._seed = names, voter, seed
        done = {vote.get("task") for vote in _earlier(out) if self._is_ours(vote)}
        self._pairs = {one.task: one for one in pairs if one.task not in done}
        self._waiting = list(self._pairs)
        self.total, self.done = len(pairs), len(pairs) - len(self._pairs)
        self._file = JsonLines(out)
        self._lock = threading.Lock()

    def question(self) -> dict[str, Any]:
        """What the page shows next; without models, and with the sides drawn."""
        from posttrain.evaluation.answers import shown

        with self._lock:
            found: dict[str, Any] = {"done": self.done, "total": self.total}
            if self._waiting:
                one = self._pairs[self._waiting[0]]
                left, right = shown(one.a), shown(one.b)
                if self._swapped(one.task):
                    left, right = right, left
                found |= {"task": one.task, "prompt": one.prompt, "left": left, "right": right}
            return found

    def vote(self, task: str, choice: str) -> bool:
        """Keep a vote, or put the question last; False when it is not the one that is asked."""
        with self._lock:
            if choice not in _CHOICES or not self._waiting or self._waiting[0] != task:
                return False
            if choice == "skip":
                self._waiting.append(self._waiting.pop(0))
                return True
            sides = {"left": "a", "right": "b", "tie": "tie"}
            if self._swapped(task):
                sides |= {"left": "b", "right": "a"}
            a, b = self._names
            row = {"a": a, "b": b, "winner": sides[choice], "task": task, "voter": self._voter}
            self._file.append(row)
            self._waiting.pop(0)
            self.done += 1
            return True

    def close(self) -> None:
        """Close the file of votes."""
        self._file.close()

    def _swapped(self, task: str) -> bool:
        """Whether b is on the left: a coin of the seed and the task, the same after a restart."""
        return hashlib.sha256(f"{self._seed} {task}".encode()).digest()[0] % 2 == 1

    def _is_ours(self, vote: dict[str, Any]) -> bool:
        models = {vote.get("a"), vote.get("b")}
        return models == set(self._names) and vote.get("voter") == self._voter


def _earlier(out: Path) -> list[dict[str, Any]]:
    """The votes that are in the file. Raises UsageError when it is another kind of file."""
    from posttrain.evaluation.votes import read_votes
    from posttrain.storage.jsonl import read_lines

    if out.exists() and out.stat().st_size:
        read_votes(out)
        return read_lines(out)[0]
    return []


def make_server(poll: Poll, port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet serving. Raises UsageError for a port that is taken."""
    token = secrets.token_urlsafe(16)
    page = files("posttrain.evaluation").joinpath("vote.html").read_text(encoding="utf-8")
    try:
        server = ThreadingHTTPServer(
            ("127.0.0.1", port), _handler(poll, page.replace("__TOKEN__", token), token)
        )
    except OSError as error:
        raise UsageError(f"port {port} of 127.0.0.1 cannot be had: {error}") from None
    server.daemon_threads = True
    return server


def _handler(poll: Poll, page: str, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._is_local():
                self._send(403, {"error": "another host"})
            elif self.path == "/":
                self._send(200, page)
            elif self.path == "/question":
                self._send(200, poll.question())
            else:
                self._send(404, {"error": "no such page"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not self._is_local() or self.headers.get("X-Token") != token:
                self._send(403, {"error": "not from the page"})
            elif self.path != "/vote" or not length.isdigit() or int(length) > _MOST_BYTES:
                self._send(400, {"error": "no vote"})
            else:
                self._count(self.rfile.read(int(length)))

        def _count(self, body: bytes) -> None:
            try:
                row = json.loads(body)
                taken = poll.vote(str(row["task"]), str(row["choice"]))
            except (ValueError, KeyError, TypeError):
                self._send(400, {"error": "no vote"})
                return
            self._send(200 if taken else 409, poll.question())

        def _is_local(self) -> bool:
            """A name that was made to point here (DNS rebinding) is not this host's."""
            name = self.headers.get("Host", "").rpartition(":")[0]
            return name in ("127.0.0.1", "localhost")

        def _send(self, status: int, content: str | dict[str, Any]) -> None:
            from posttrain.storage.jsonl import to_json

            is_page = isinstance(content, str)
            data = (content if isinstance(content, str) else to_json(content)).encode()
            self.send_response(status)
            kind = "text/html" if is_page else "application/json"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the terminal is the person's."""

    return Handler


def _vote(options: argparse.Namespace) -> int:
    a, b, pairs = read_sides(options)
    poll = Poll((a.name, b.name), pairs, options.out, options.voter, options.seed)
    server = make_server(poll, options.port)
    print(f"vote at http://127.0.0.1:{server.server_port}/ ; Ctrl-C ends it", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        poll.close()
    print(json.dumps({"votes": str(options.out), "done": poll.done, "total": poll.total}))
    return 0
