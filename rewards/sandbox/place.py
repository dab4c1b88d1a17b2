"""Our side of a sandbox's launchers: how many there are, who gets one, what if one fails.

A place runs one program at a time. A program waits for a free place, which is bounded because every
run is. A place whose launcher failed or did not answer is thrown away with everything in it and
replaced at the next use; that run is a ``SandboxError``.
"""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakSet

from rewards.sandbox import cgroups, files, wire
from rewards.sandbox.drain import REAP_S, SETUP_S
from rewards.sandbox.protocol import (
    Ending,
    Finished,
    Limits,
    Program,
    SandboxError,
    SessionOver,
)
from rewards.sandbox.session import LENGTH, MAX_ANSWER

START_S = 30.0  # for a launcher to say that it is ready
GRACE_S = SETUP_S + REAP_S + 10.0  # on top of a program's wall time, for all that is ours
WAIT_S = 3600.0  # for a free place

# The modules are imported without ``rewards`` itself: the launcher stays small and starts fast.
_BOOT = """
import sys, types
for name, path in (("rewards", sys.argv[2]), ("rewards.sandbox", sys.argv[2] + "/sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from rewards.sandbox.launcher import main
main(int(sys.argv[1]))
"""
_PACKAGE = str(Path(__file__).resolve().parent.parent)

_counter = itertools.count()
_open_pools: WeakSet[Pool] = WeakSet()


class Place:
    """One launcher process and its control group. Raises SandboxError when it cannot start."""

    def __init__(self, config: dict[str, Any], *, control_group: bool) -> None:
        name = f"{os.getpid()}-{next(_counter)}"
        self.group = cgroups.make(name) if control_group else None
        ours, theirs = socket.socketpair()
        self.channel = ours
        self._kills, self._started = 0, 0.0  # of what runs: kills for memory before it
        self.lost = False  # the launcher is gone, though its last run has an answer
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), _PACKAGE],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
                start_new_session=True,  # a Ctrl-C at the terminal is not for it
            )
        except BaseException:
            ours.close()
            self._remove_group()
            raise
        finally:
            theirs.close()
        try:
            group = asdict(self.group) if self.group else None
            wire.send(ours, {**config, "group": group})
            answer, _ = wire.receive(ours, time.monotonic() + START_S)
            if "error" in answer:
                raise SandboxError(answer["error"])
        except BaseException as error:
            self.close()
            if isinstance(error, SandboxError | KeyboardInterrupt):
                raise
            raise SandboxError(f"a launcher of the sandbox did not start: {error}") from error

    def run(self, program: Program) -> Finished:
        """Raises SandboxError; OSError, EOFError or ValueError when the place is beyond use."""
        self.start(program)
        return self.finish(time.monotonic() + program.limits.wall_s + GRACE_S)

    def start(self, program: Program, talk: socket.socket | None = None) -> None:
        """Start a program; with ``talk`` that is its standard input and output. Raises OSError."""
        self.channel.settimeout(GRACE_S)
        header = {
            "argv": list(program.argv),
            "limits": asdict(program.limits),
            "paths": list(program.files),
            "talks": talk is not None,
        }
        self._kills = self.group.out_of_memory() if self.group else 0
        self._started = time.monotonic()
        wire.send(self.channel, header, [program.stdin, *program.files.values()])
        if talk is not None:
            socket.send_fds(self.channel, [b"t"], [talk.fileno()])

    def finish(self, deadline: float) -> Finished:
        """How it ended. Raises SandboxError; OSError, EOFError or ValueError as ``run`` does."""
        try:
            answer, blobs = wire.receive(self.channel, deadline)
        except EOFError:
            if self.group and self.group.out_of_memory() > self._kills:
                # The launcher is in the program's control group; this is the program's doing.
                self.lost = True
                wall_s = time.monotonic() - self._started
                return Finished(Ending.MEMORY, None, None, b"", b"", wall_s=wall_s)
            raise
        if "error" in answer:
            raise SandboxError(answer["error"])
        ending, value = Ending(answer["ending"]), int(answer["value"])
        stdout, stderr = blobs
        return Finished(
            ending,
            exit_code=value if ending is Ending.EXIT else None,
            signal=value if ending is Ending.SIGNAL else None,
            stdout=stdout,
            stderr=stderr,
            wall_s=answer["wall_s"],
        )

    def close(self) -> None:
        """End the launcher, and the kernel ends all that is in it. May be called again, and from
        another thread than one that waits for an answer."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)  # unlike close, this wakes who reads
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)  # it clears up and leaves by itself when the channel ends
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(REAP_S)
        self.channel.close()
        self._remove_group()

    def _remove_group(self) -> None:
        if self.group:
            self.group.remove()


class TalkLine:
    """The ``Line`` of a session: a place of its own, which ends with it."""

    def __init__(self, place: Place, program: Program) -> None:
        self._place = place
        self._ours, theirs = socket.socketpair()
        try:
            with theirs:
                place.start(program, theirs)
        except OSError as error:
            self.close()
            raise SandboxError(f"a session did not start: {error}") from error

    def exchange(self, request: bytes, timeout_s: float) -> bytes:
        """Raises SessionOver when the program has ended, SandboxError."""
        deadline = time.monotonic() + timeout_s
        try:
            self._ours.settimeout(timeout_s)
            self._ours.sendall(LENGTH.pack(len(request)) + request)
            (size,) = LENGTH.unpack(wire.take(self._ours, LENGTH.size, deadline))
            if size > MAX_ANSWER:
                raise SessionOver(Ending.OUTPUT)
            return wire.take(self._ours, size, deadline)
        except TimeoutError:
            raise SessionOver(Ending.WALL) from None
        except (OSError, EOFError):
            raise SessionOver(self._ending()) from None

    def close(self) -> None:
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)  # unlike close, this wakes who reads
        self._place.close()
        self._ours.close()

    def _ending(self) -> Ending:
        """Why nobody talks any more. Raises SandboxError when it is the sandbox's fault."""
        try:
            finished = self._place.finish(time.monotonic() + GRACE_S)
        except (OSError, EOFError, ValueError) as error:
            raise SandboxError(f"the session's place failed: {error}") from error
        return Ending.SIGNAL if finished.ending is Ending.EXIT else finished.ending


class Pool:
    """``places`` places, started when first needed; for use from many threads."""

    def __init__(self, make: Callable[[], Place], places: int, first: Place) -> None:
        self._make = make
        self._owner = os.getpid()
        self._closed = False
        self._free: queue.LifoQueue[Place | None] = queue.LifoQueue()
        for _ in range(places - 1):
            self._free.put(None)
        self._free.put(first)
        self._started = {first}
        _open_pools.add(self)

    def run(self, program: Program) -> Finished:
        check(program)
        if self._owner != os.getpid():
            raise SandboxError("this sandbox was opened by another process: load one here")
        try:
            place = self._free.get(timeout=WAIT_S)
        except queue.Empty:
            raise SandboxError(f"no place in the sandbox was free for {WAIT_S:g} s") from None
        usable = False
        try:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            if place is None:
                place = self._make()
                self._started.add(place)
            finished = place.run(program)
            usable = not place.lost
            return finished
        except (OSError, EOFError, ValueError) as error:
            if self._closed:
                raise SandboxError("the sandbox was closed while the program ran") from error
            raise SandboxError(f"the sandbox failed: {type(error).__name__}: {error}") from error
        finally:
            if place is not None and (self._closed or not usable):
                place.close()
                self._started.discard(place)
            self._free.put(place if usable else None)

    def close(self) -> None:
        """End every place, with what is running in it: those runs are a SandboxError."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for place in list(self._started):
            place.close()


def check(program: Program) -> None:
    """Raises ValueError for a program that no sandbox could run."""
    limits: Limits = program.limits
    if not program.argv:
        raise ValueError("a program needs an argv")
    if any("\0" in one for one in program.argv):
        raise ValueError("argv holds a NUL byte")
    for path in program.files:
        files.check(path)
    if sum(map(len, program.files.values())) > limits.disk_bytes:
        raise ValueError(f"the program's files are larger than disk_bytes = {limits.disk_bytes}")
    if len(program.files) > limits.files:
        raise ValueError(f"the program has more files than its limit of {limits.files}")
    for name, value in asdict(limits).items():
        if value <= 0:
            raise ValueError(f"limit {name} must be positive, got {value}")


@atexit.register
def _close_all() -> None:
    for pool in list(_open_pools):
        pool.close()
