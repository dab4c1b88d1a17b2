"""Decides how one warm container is talked to, and when it must be thrown away.

The container's agent (``rewards.sandbox.image.agent``) is reached over Docker's attached stream.
All that comes back is written by something that untrusted programs lived beside: frames are read
with bounds and a deadline, every field is checked, and an answer must carry the job's random id.
Anything unexpected is ``Lost``: the container is of no more use.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.errors import UsageError
from rewards.sandbox.image import frames
from rewards.sandbox.protocol import Ending, Finished, Limits, Program, SandboxError

HELLO_S = 30.0  # from the container's start to its agent's first word
GRACE_S = 10.0  # beyond the program's own wall time, for killing, cleaning and the way here
CHUNK = 1 << 16
STDIN_BYTES = 64 << 20
PACKET_BYTES = 1 << 24  # Docker's are 32 KiB
STDERR = 2  # of Docker's stream types


class Lost(Exception):
    """The container is gone or can't be trusted any more.

    ``late``: it did not answer in time. ``blameless``: it was not the program's doing.
    """

    def __init__(self, why: str, *, late: bool = False, blameless: bool = False) -> None:
        super().__init__(why)
        self.late, self.blameless = late, blameless


class Stream:
    """Docker's attached stream: bytes in, packets with an 8-byte head out."""

    def __init__(self, attached: Any) -> None:
        self._attached = attached  # keeps the response, and so the connection, alive
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._packets = bytearray()
        self._out = bytearray()
        self.complaints = bytearray()  # the end of the agent's stderr

    def send(self, data: bytes, deadline: float) -> None:
        """Raises Lost."""
        rest = memoryview(data)
        try:
            while rest:
                self._socket.settimeout(_left(deadline))
                rest = rest[self._socket.send(rest[: 1 << 20]) :]
        except TimeoutError:
            raise Lost("the container takes no input", late=True) from None
        except (OSError, ValueError) as error:
            raise Lost(f"the connection broke: {error}") from None

    def take(self, size: int, deadline: float) -> bytes:
        """Exactly ``size`` bytes of the agent's stdout. Raises Lost."""
        while len(self._out) < size:
            self._packet(deadline)
        data = bytes(self._out[:size])
        del self._out[:size]
        return data

    def idle(self) -> bool:
        """Whether nothing is waiting to be read: a container speaks only when it is asked.

        False as well for a connection that has ended meanwhile.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not self._out and not self._packets and not poll.poll(0)

    def hang_up(self) -> None:
        """End the agent, from any thread: one that reads here gets Lost."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already gone

    def close(self) -> None:
        """Hang up and let go of the connection. Nobody else may be reading: its number is free
        for another connection at once."""
        self.hang_up()
        self._socket.close()
        try:
            self._attached.close()
        except OSError:
            pass  # the same connection under another name

    def _packet(self, deadline: float) -> None:
        while len(self._packets) < 8:
            self._receive(deadline)
        kind, size = struct.unpack_from(">BxxxI", self._packets)
        del self._packets[:8]
        if size > PACKET_BYTES:
            raise Lost(f"a packet of {size} bytes")
        while size:
            if not self._packets:
                self._receive(deadline)
            piece = self._packets[:size]
            del self._packets[: len(piece)]
            size -= len(piece)
            if kind == STDERR:
                self.complaints = (self.complaints + piece)[-2000:]
            else:
                self._out += piece

    def _receive(self, deadline: float) -> None:
        try:
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            raise Lost("no answer in time", late=True) from None
        except (OSError, ValueError) as error:
            raise Lost(f"the connection broke: {error}") from None
        if not data:
            last = self.complaints.decode("utf-8", "replace").strip()[-300:]
            raise Lost(f"the container ended{': ' + last if last else ''}")
        self._packets += data


def _left(deadline: float) -> float:
    """Raises TimeoutError when nothing is left: a time-out of 0 would mean not to block."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@dataclass(frozen=True, slots=True)
class Over:
    """A session's program has ended; ``unclean`` as for ``Container.run``."""

    ending: Ending
    unclean: str


class Container:
    """A started container with its agent."""

    def __init__(self, ident: str, stream: Stream) -> None:
        self.ident = ident
        self.stream = stream
        self.facts = self._read(time.monotonic() + HELLO_S, 0)[0]  # its agent's hello

    def run(self, program: Program) -> tuple[Finished, str]:
        """What the program did, and why the container is not clean after it ("" when it is).

        Raises Lost; SandboxError when the agent could not lay out the files.
        """
        limits = program.limits
        deadline = time.monotonic() + limits.wall_s + GRACE_S
        header, body = self._ask(*_job(program), deadline, 2 * limits.output_bytes)
        unclean = _text(header, "clean")
        if "refused" in header:
            raise SandboxError(f"the program's files: {_text(header, 'refused')}")
        return _finished(header, body, limits), unclean

    def open(self, program: Program) -> None:
        """Start a session's program. Raises Lost; SandboxError when the files can't be laid out."""
        job, body = _job(program)
        answer, _ = self._ask({**job, "do": "session"}, body, time.monotonic() + HELLO_S, 0)
        if answer.get("open") is not True:
            raise SandboxError(f"the session's files: {_text(answer, 'refused')}")

    def tell(self, request: bytes, timeout_s: float, most: int) -> bytes | Over:
        """The program's answer, or that it has ended. Raises Lost."""
        deadline = time.monotonic() + timeout_s
        answer, content = self._ask({"do": "tell"}, request, deadline, most)
        return content if answer.get("said") is True else _over(answer)

    def end(self) -> Over:
        """End the session's program. Raises Lost."""
        return _over(self._ask({"do": "end"}, b"", time.monotonic() + GRACE_S, 0)[0])

    def has(self, command: str) -> bool:
        """Whether the agent finds the command. Raises Lost."""
        deadline = time.monotonic() + HELLO_S
        header, _ = self._ask({"do": "has", "command": command}, b"", deadline, 0)
        return header.get("found") is True

    def _ask(
        self, header: dict[str, Any], body: bytes, deadline: float, body_bytes: int
    ) -> tuple[dict[str, Any], bytes]:
        ident = secrets.token_hex(16)
        if not self.stream.idle():
            raise Lost("it ended, or spoke, without being asked", blameless=True)
        self.stream.send(frames.pack({**header, "id": ident}, body), deadline)
        answer, content = self._read(deadline, body_bytes)
        if answer.get("id") != ident:
            raise Lost("the answer is not to this job")
        return answer, content

    def _read(self, deadline: float, body_bytes: int) -> tuple[dict[str, Any], bytes]:
        try:
            return frames.read(lambda size: self.stream.take(size, deadline), body_bytes)
        except frames.BadFrame as error:
            raise Lost(f"not an answer: {error}") from None


def check_facts(facts: Mapping[str, Any], limits: Limits) -> None:
    """Raises SandboxError for a container without one of the layers that we promise.

    The agent has just started and nothing untrusted has run yet: it can be believed.
    """
    space = facts.get("space", {})
    expected = {
        "first process": facts.get("pid") == 1,
        "not root": facts.get("uid", 0) != 0,
        "no capabilities": facts.get("capabilities") == 0,
        "no new privileges": facts.get("no_new_privs") is True,
        "seccomp": facts.get("seccomp") is True,
        "read-only root": facts.get("read_only") is True,
        "no network": facts.get("interfaces") == ["lo"],
        "disk limit": space.get("/tmp", [limits.disk_bytes + 1])[0] <= limits.disk_bytes,
        "memory limit": 0 < facts.get("memory", 0) < 2 * limits.memory_bytes + (1 << 30),
        "clean": facts.get("clean") == "",
    }
    missing = [name for name, holds in expected.items() if not holds]
    if missing:
        raise SandboxError(f"the container lacks: {', '.join(missing)} (its agent saw {facts})")


def check_program(program: Program, limits: Limits) -> None:
    """Raises UsageError for what can't be run in containers made with ``limits``."""
    if not program.argv or not all(isinstance(one, str) and one for one in program.argv[:1]):
        raise UsageError("a program needs an argv with a command")
    for name in ("memory_bytes", "processes", "disk_bytes", "files"):
        asked, there = getattr(program.limits, name), getattr(limits, name)
        if asked > there:
            raise UsageError(
                f"the program may use {name}={asked}, the containers were made with {there}: "
                f"give DockerSandbox limits=Limits({name}={asked}) or more"
            )
    for name in program.files:
        parts = str(name).split("/")
        if "\0" in name or ".." in parts or "" in parts or "." in parts:
            raise UsageError(f"file {name!r}: a path below the working directory is needed")
    size = sum(map(len, program.files.values()))
    if size > program.limits.disk_bytes or len(program.stdin) > STDIN_BYTES:
        raise UsageError(
            f"files of {size} bytes and a standard input of {len(program.stdin)}: at most "
            f"{program.limits.disk_bytes} (disk_bytes) and {STDIN_BYTES}"
        )
    if any("\0" in one for one in program.argv):
        raise UsageError("an argument holds a NUL, which no program can be given")


def _job(program: Program) -> tuple[dict[str, Any], bytes]:
    files = [(os.fspath(name), content) for name, content in program.files.items()]
    header = {
        "do": "run",
        "argv": list(program.argv),
        "stdin": len(program.stdin),
        "files": [[name, len(content)] for name, content in files],
        "limits": {name: getattr(program.limits, name) for name in Limits.__slots__},
    }
    return header, b"".join([program.stdin, *(content for _, content in files)])


def _finished(header: Mapping[str, Any], body: bytes, limits: Limits) -> Finished:
    """Raises Lost for anything that is not exactly what an agent says."""
    cut = _number(header, "stdout", 0, len(body))
    stdout, stderr = body[: int(cut)], body[int(cut) :]
    if max(len(stdout), len(stderr)) > limits.output_bytes:
        raise Lost("more output than allowed")
    if header.get("ending") not in list(Ending):
        raise Lost(f"an ending of {header.get('ending')!r:.40}")
    ending = Ending(header["ending"])
    code = int(_number(header, "exit_code", 0, 255)) if ending is Ending.EXIT else None
    killer = int(_number(header, "signal", 1, 64)) if ending is Ending.SIGNAL else None
    wall_s = _number(header, "wall_s", 0, limits.wall_s + GRACE_S)
    return Finished(ending, code, killer, stdout, stderr, float(wall_s))


def _over(header: Mapping[str, Any]) -> Over:
    """Raises Lost. A supervisor ends by itself only when it is told to, or made to."""
    given = header.get("ending")
    by_limit = given in (Ending.WALL, Ending.CPU, Ending.MEMORY, Ending.OUTPUT)
    return Over(Ending(str(given)) if by_limit else Ending.SIGNAL, _text(header, "clean"))


def _number(header: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Lost(f"{key} is {value!r:.40}")
    return value


def _text(header: Mapping[str, Any], key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str):
        raise Lost(f"{key} is {value!r:.40}")
    return value[:300]
