"""The connection between the orchestrator and one rank: messages, files, and how its loss is seen.

A message is one line of JSON. Files may follow it: the line says so, ``"files": [[name, bytes],
...]``, then come their bytes in that order, each followed by its SHA-256. They are sent only to and
from a rank that does not see the run directory: what a command reads goes with it, what it wrote
comes back with the answer, under names relative to the folder that the command names.

A connection whose other end is out of reach breaks after ``SILENT_S``: the kernel asks the other
end for signs of life, which it gives however busy its process is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import BufferedRWPair

SILENT_S = 60.0
_CHUNK = 2**20  # bytes
_DIGEST = 32
_CONNECT_TIMEOUT_S = 5.0  # of one try
_RETRY_EVERY_S = 0.5


class RankFailed(Exception):
    """A rank did not do what it was told. Never leaves the learner."""

    def __init__(self, rank: int, why: str, *, usage: bool = False) -> None:
        super().__init__(why)
        self.rank, self.why, self.usage = rank, why, usage


@dataclass(slots=True)
class RankLink:
    """The orchestrator's end."""

    number: int  # -1 until it has one
    hello: Mapping[str, Any]  # what it said of itself: host, pid, local rank, a free port
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sees_run: bool = True  # the run directory, under the same path

    @property
    def host(self) -> str:
        return str(self.hello["host"])

    @property
    def address(self) -> str:
        """The address it connects from."""
        return str(self.writer.get_extra_info("peername")[0])

    @property
    def part(self) -> str:
        return f"learner rank {self.number}"

    @property
    def name(self) -> str:
        """With its host, if that is another one."""
        return self.part if self.host == socket.gethostname() else f"{self.part} on {self.host}"

    async def ask(self, message: Mapping[str, Any]) -> Any:
        """Send a command and wait for its answer; RankFailed when there is none, or an error."""
        try:
            named = message.get("path") or message.get("folder")
            root = None if named is None or self.sees_run else Path(named).parent
            await self._send(message, root)
            line = await self.reader.readline()
            answer = json.loads(line) if line else None
            if answer and root is not None:
                for name, size in answer.get("files", ()):
                    await self._take(_inside(root, name), size)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise RankFailed(self.number, f"its connection broke ({error})") from error
        if answer is None:
            raise RankFailed(self.number, "its process ended")
        if "error" in answer:
            raise RankFailed(self.number, answer["error"], usage=answer["usage"])
        return answer["result"]

    async def _send(self, message: Mapping[str, Any], root: Path | None) -> None:
        files = _inputs(message) if root else []
        self.writer.write(_line(message, files, root))
        for file in files:
            digest = hashlib.sha256()
            with file.open("rb") as source:
                while chunk := await asyncio.to_thread(source.read, _CHUNK):
                    digest.update(chunk)
                    self.writer.write(chunk)
                    await self.writer.drain()
            self.writer.write(digest.digest())
        await self.writer.drain()

    async def _take(self, target: Path, size: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside, digest = target.with_name(target.name + ".partial"), hashlib.sha256()
        with aside.open("wb") as file:
            while size:
                chunk = await self.reader.readexactly(min(size, _CHUNK))
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
                size -= len(chunk)
        if await self.reader.readexactly(_DIGEST) != digest.digest():
            raise RankFailed(self.number, f"{target.name} arrived damaged (SHA-256 differs)")
        os.replace(aside, target)


def _inputs(message: Mapping[str, Any]) -> list[Path]:
    """The files that a command reads."""
    if "path" in message:
        return [Path(message["path"])]
    if message["command"] == "load":
        return sorted(path for path in Path(message["folder"]).rglob("*") if path.is_file())
    return []


# the rank's end


def connect(address: tuple[str, int], wait_s: float) -> socket.socket:
    """Connect to the orchestrator, which may not listen yet. Raises OSError after ``wait_s``."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S)
        except OSError as error:
            if time.monotonic() > deadline:
                where = f"{address[0]}:{address[1]}"
                raise OSError(f"no orchestrator at {where} within {wait_s:g} s: {error}") from error
            time.sleep(_RETRY_EVERY_S)
        else:
            connection.settimeout(None)  # commands may be hours apart
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(connection, SILENT_S)
            return connection


def send(
    stream: BufferedRWPair,
    message: Mapping[str, Any],
    files: Sequence[Path] = (),
    root: Path | None = None,
) -> None:
    """Send a message and the files, which lie below ``root``."""
    stream.write(_line(message, files, root))
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                stream.write(chunk)
        stream.write(digest.digest())
    stream.flush()


def take(stream: BufferedRWPair, files: Iterable[tuple[str, int]], root: Path) -> list[Path]:
    """Read the files that follow a message to below ``root``. Raises OSError."""
    taken = []
    for name, size in files:
        target, digest = _inside(root, name), hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while size:
                chunk = stream.read(min(size, _CHUNK))
                if not chunk:
                    raise ConnectionError(f"the connection ended in the middle of {name}")
                digest.update(chunk)
                file.write(chunk)
                size -= len(chunk)
        if stream.read(_DIGEST) != digest.digest():
            raise ConnectionError(f"{name} arrived damaged (SHA-256 differs)")
        taken.append(target)
    return taken


# both


def keep_alive(connection: socket.socket, silent_s: float) -> None:
    """Have the connection break when its other end is out of reach for so long."""
    every = max(1, round(silent_s / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    # Also while something sent is not acknowledged, when the kernel does not ask.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silent_s * 1000))


def _line(message: Mapping[str, Any], files: Sequence[Path], root: Path | None) -> bytes:
    if files and root is not None:
        named = [[str(file.relative_to(root)), file.stat().st_size] for file in files]
        message = {**message, "files": named}
    return json.dumps(message).encode() + b"\n"


def _inside(root: Path, name: str) -> Path:
    """``root / name``; the other end names files below ``root`` only."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConnectionError(f"a file called {name!r} leads out of {root}")
    return root / name
