"""Watches one running program: takes what it writes, holds it to its limits, learns how it ended.

Output is taken while the program runs, so that a full pipe never blocks it, and no more is kept
than ``output_bytes`` of each stream. Nothing in here waits without a deadline.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass, field

from rewards.sandbox.protocol import Ending, Limits, SandboxError
from rewards.sandbox.usage import Usage

SETUP_S = 15.0  # to build the sandbox around a program: ours, not the program's time
REAP_S = 15.0  # for the kernel to end what was killed
LOOK_S = 0.02  # between two looks at what the program uses
CHUNK = 1 << 16

# What the init process of a program writes to its events pipe.
STARTED, ENDED, FAILED = b"S", b"E", b"F"
WAIT_STATUS = struct.Struct("!i")


class Abandoned(Exception):
    """Whoever asked for the program is gone: end it and stop."""


@dataclass(slots=True)
class Running:
    """A program's init process, which is our child, and the pipes from it and from the program."""

    pid: int
    events: int
    stdout: int
    stderr: int

    def close(self) -> None:
        for fd in (self.events, self.stdout, self.stderr):
            os.close(fd)


@dataclass(slots=True)
class Verdict:
    """How it ended; ``value`` is the exit code or the signal, where the ending has one."""

    ending: Ending
    value: int = 0
    wall_s: float = 0.0


@dataclass(slots=True)
class Watch:
    """One run. ``channel`` is only watched for its end."""

    running: Running
    limits: Limits
    usage: Usage
    channel: socket.socket
    output: dict[int, bytearray] = field(default_factory=dict)
    _events: bytearray = field(default_factory=bytearray)
    _open: set[int] = field(default_factory=set)
    _started: float = 0.0
    _next_look: float = 0.0

    def until_ended(self) -> Verdict:
        """Returns when the program has ended or has to be. Raises SandboxError, Abandoned."""
        running = self.running
        self._open = {running.events, running.stdout, running.stderr}
        self.output = {running.stdout: bytearray(), running.stderr: bytearray()}
        poller = select.poll()
        for fd in (*self._open, self.channel.fileno()):
            os.set_blocking(fd, False)
            poller.register(fd, select.POLLIN)
        begun = time.monotonic()
        while True:
            for fd, _ in poller.poll(LOOK_S * 1000):
                if fd == self.channel.fileno():
                    raise Abandoned
                if not self._read(fd):
                    self._open.discard(fd)
                    poller.unregister(fd)
            verdict = self._judge(time.monotonic(), begun)
            if verdict:
                verdict.wall_s = time.monotonic() - (self._started or begun)
                return verdict

    def finish(self, verdict: Verdict) -> Verdict:
        """Everything is dead: take what is left in the pipes, and have a last look at limits."""
        for fd in self._open & set(self.output):
            while len(self.output[fd]) <= self.limits.output_bytes and self._read(fd):
                pass
        over = max(map(len, self.output.values())) > self.limits.output_bytes
        for kept in self.output.values():
            del kept[self.limits.output_bytes :]
        if verdict.ending in (Ending.EXIT, Ending.SIGNAL):
            passed = Ending.OUTPUT if over else self.usage.exceeded()
            if passed in (Ending.OUTPUT, Ending.MEMORY, Ending.CPU):
                return Verdict(passed, wall_s=verdict.wall_s)
            if verdict.ending is Ending.SIGNAL and verdict.value == signal.SIGXCPU:
                return Verdict(Ending.CPU, wall_s=verdict.wall_s)
        return verdict

    def _read(self, fd: int) -> bool:
        """Take one piece; False at the end of the stream, or when nothing is there."""
        kept = self._events if fd == self.running.events else self.output[fd]
        try:
            piece = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        kept += piece
        return bool(piece)

    def _judge(self, now: float, begun: float) -> Verdict | None:
        if self._events:
            verdict = self._by_event(now)
            if verdict:
                return verdict
        elif self.running.events not in self._open:
            raise SandboxError("the sandbox's init process died before the program started")
        if not self._started:
            if now - begun > SETUP_S:
                raise SandboxError(f"the sandbox was not set up after {SETUP_S:g} s")
            return None
        if max(map(len, self.output.values())) > self.limits.output_bytes:
            return Verdict(Ending.OUTPUT)
        if now - self._started > self.limits.wall_s:
            return Verdict(Ending.WALL)
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            passed = self.usage.exceeded()
            if passed:
                return Verdict(passed, signal.SIGKILL)
        return None

    def _by_event(self, now: float) -> Verdict | None:
        kind, rest = bytes(self._events[:1]), bytes(self._events[1:])
        if kind == FAILED:
            raise SandboxError(self._why(rest))
        self._started = self._started or now
        if rest[:1] == FAILED:
            raise SandboxError(self._why(rest[1:]))
        if rest[:1] == ENDED and len(rest) > WAIT_STATUS.size:
            code = os.waitstatus_to_exitcode(WAIT_STATUS.unpack(rest[1 : 1 + WAIT_STATUS.size])[0])
            return Verdict(Ending.EXIT, code) if code >= 0 else Verdict(Ending.SIGNAL, -code)
        if self.running.events not in self._open:
            # Only the kernel's memory killer ends an init process that we did not.
            return Verdict(self.usage.exceeded() or Ending.SIGNAL, signal.SIGKILL)
        return None

    def _why(self, text: bytes) -> str:
        self._read(self.running.stderr)
        said = bytes(self.output[self.running.stderr][-2000:]).decode(errors="replace").strip()
        return ": ".join(one for one in (text.decode(errors="replace"), said) if one)


def end(pid: int) -> None:
    """Kill our child and wait until the kernel has ended it, with its whole pid namespace if it
    is the first of one. Raises SandboxError when that takes longer than ``REAP_S``."""
    handle = os.pidfd_open(pid)  # our child, not reaped yet: the number cannot be another's
    try:
        os.kill(pid, signal.SIGKILL)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(REAP_S * 1000):
            raise SandboxError(f"killed processes were still there after {REAP_S:g} s")
        os.waitpid(pid, 0)
    finally:
        os.close(handle)
