"""Decides how one program is started, watched and ended inside a container.

It gets pipes of its own, which are read while it runs and kept up to its limit. Time, CPU and
memory are looked at each tick, for all that it started together. When it ends or must end,
everything in the container but the agent is killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import time
from typing import Any, NoReturn

from rewards.sandbox.image.meter import Meter
from rewards.sandbox.image.room import TMP, WORK, kill_the_rest
from rewards.sandbox.image.syscalls import Filters

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": WORK,
    "TMPDIR": TMP,
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TICK_S = 0.01  # how often time, memory and CPU are looked at
PR_SET_DUMPABLE = 4
CHUNK = 1 << 16


class Run:
    """One program, from its start to the end of all that it started."""

    def __init__(self, job: dict[str, Any], stdin: bytes, meter: Meter, filters: Filters) -> None:
        self.limits = job["limits"]
        self.argv: list[str] = job["argv"]
        self.stdin = memoryview(stdin)
        self.meter, self.filters = meter, filters
        self.output: dict[int, bytearray] = {}  # read end -> what came; stdout first
        self.open_ends: set[int] = set()
        self.status: int | None = None  # of the program itself, as waitpid gives it
        self.ending = ""  # why we killed it
        self.started = self.wall_s = 0.0
        self.poll = select.poll()

    def to_end(self) -> None:
        """Start it, serve its pipes, and kill whatever is there when it ends or must end."""
        self.meter.start()
        self.memory_before = self.meter.memory()
        self.started = time.monotonic()
        stdin, handle = self._start()
        try:
            while self.status is None and not self.ending:
                self._serve(stdin, handle)
        finally:
            self.wall_s = time.monotonic() - self.started
            os.close(handle)
            self.reap()
            kill_the_rest(self.reap)
            self._drain()
            if not stdin.closed:
                stdin.close()
            for end in self.output:
                os.close(end)
        if self.meter.kills() > 0:
            self.ending = "memory"
        elif self.over():
            self.ending = "output"

    def over(self) -> bool:
        """Whether a stream is longer than allowed."""
        return any(len(data) > self.limits["output_bytes"] for data in self.output.values())

    def report(self) -> dict[str, Any]:
        """Ending, exit code and signal."""
        status = self.status or 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        ending = self.ending or ("signal" if killer else "exit")
        if not self.ending and killer == signal.SIGXCPU:
            ending = "cpu"
        return {
            "ending": ending,
            "exit_code": code if ending == "exit" else None,
            "signal": killer if ending == "signal" else None,
            "wall_s": self.wall_s,
        }

    def reap(self) -> None:
        """Collect every child that has ended; orphans become ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = status

    def _start(self) -> tuple[Any, int]:
        ours_in, theirs = [], []
        stdin_read, stdin_write = os.pipe()
        theirs.append(stdin_read)
        for _ in ("stdout", "stderr"):
            read_end, write_end = os.pipe()
            ours_in.append(read_end)
            theirs.append(write_end)
        self.pid = os.fork()
        if self.pid == 0:
            self._become_program(theirs)
        for end in theirs:
            os.close(end)
        for end in ours_in:
            os.set_blocking(end, False)
            self.output[end] = bytearray()
            self.open_ends.add(end)
            self.poll.register(end, select.POLLIN)
        os.set_blocking(stdin_write, False)
        stdin = os.fdopen(stdin_write, "wb", buffering=0)
        self.poll.register(stdin_write, select.POLLOUT)
        self.poll.register(0, select.POLLIN)  # nothing comes while a job runs, but the end
        handle = os.pidfd_open(self.pid)
        self.poll.register(handle, select.POLLIN)
        return stdin, handle

    def _become_program(self, ends: list[int]) -> NoReturn:
        """In the child: never returns."""
        try:
            for fd, end in enumerate(ends):  # they are above 2, where the agent's own pipes are
                os.dup2(end, fd)
            os.setsid()
            os.chdir(WORK)
            os.umask(0o022)
            first_to_be_killed()
            set_limits(self.limits)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            self.filters.install()
            os.execvpe(self.argv[0], self.argv, ENVIRONMENT)
        except OSError as error:
            os.write(2, f"{self.argv[0]}: {error.strerror}\n".encode("utf-8", "replace"))
            os._exit(127 if error.errno == errno.ENOENT else 126)
        finally:
            os._exit(126)

    def _serve(self, stdin: Any, handle: int) -> None:
        """Wait for one thing to happen, at most a tick, and check the limits."""
        for fd, event in self.poll.poll(TICK_S * 1000):
            if fd in self.output:
                self._read(fd)
            elif fd == 0:
                self._told()
            elif fd != handle:
                self._feed(stdin, bool(event & select.POLLOUT))
        self.reap()
        if self.status is not None:
            return
        if time.monotonic() - self.started > self.limits["wall_s"]:
            self.ending = "wall"
        elif self.over():
            self.ending = "output"
        elif self.meter.cpu_s() > self.limits["cpu_s"]:
            self.ending = "cpu"
        elif self.meter.memory() > self.limits["memory_bytes"] + self.memory_before:
            self.ending = "memory"

    def _read(self, end: int) -> bool:
        """Whether something came. What is beyond the limit is not kept."""
        try:
            data = os.read(end, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            if end in self.open_ends:
                self.open_ends.discard(end)
                self.poll.unregister(end)
            return False
        kept = self.output[end]
        kept += data[: self.limits["output_bytes"] + 1 - len(kept)]
        return True

    def _feed(self, stdin: Any, writable: bool) -> None:
        try:
            if writable and self.stdin:
                self.stdin = self.stdin[stdin.write(self.stdin[:CHUNK]) or 0 :]
            if writable and self.stdin:
                return
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # it does not want to read any more
        self._fed(stdin)

    def _fed(self, stdin: Any) -> None:
        """Its input has been written."""
        self.poll.unregister(stdin.fileno())
        stdin.close()

    def _told(self) -> None:
        """Our own input has ended."""
        os._exit(0)  # our owner is gone, and with us goes all that is in here

    def _drain(self) -> None:
        """What the dead have left in the pipes: a bounded amount."""
        for end in self.output:
            while self._read(end) and len(self.output[end]) <= self.limits["output_bytes"]:
                pass


def set_limits(limits: dict[str, Any]) -> None:
    """Limits of a single process; the container's own and the agent's count them together."""
    cpu = int(limits["cpu_s"]) + 1
    for what, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"], limits["disk_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 1, limits["processes"] + 1),  # and the agent
        (resource.RLIMIT_NOFILE, 1024, 1024),
        (resource.RLIMIT_MEMLOCK, 1 << 20, 1 << 20),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
    ):
        ceiling = resource.getrlimit(what)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(what, (soft, hard))


def first_to_be_killed() -> None:
    """When memory runs out the kernel takes the program, not the agent.

    Only a dumpable process may write its own score; nobody is here yet who could use that.
    """
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
