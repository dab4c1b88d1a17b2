"""Runs work that model text can make slow, large or fatal in processes that can be killed.

``WorkerPool("package.module:function")`` calls ``function(payload)`` in another process. Each of
its ``size`` places is a pair: a *keeper*, which imports the function's module once (and calls its
``warm_up()``, if it has one) and touches no payload, and its *child*, forked from it, which does
the work under a limit on memory, and writes no files. A child that misses its deadline is killed
with SIGKILL by its keeper and replaced by a fork, which takes milliseconds. So a poisoned payload
costs one child; every other caller gets its answer.

Nothing here uses signals or shared state of the calling process: it is right in any thread, under
asyncio (``acall``) and in a process forked from one that has used the pool. Keepers end when their
stdin closes or their parent is gone, whichever way it went; children die with their keepers.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

from rewards.threads import in_thread

START_TIMEOUT_S = 120.0
WAIT_TIMEOUT_S = 600.0  # for a free place, when every one has work
GRACE_S = 10.0  # what a keeper gets beyond the deadline to report that it has killed its child
MEMORY_BYTES = 2 << 30  # address space of a child
MAX_JOBS = 2000  # of one child: what caches keep does not grow for ever
_HEADER = struct.Struct(">I")


class WorkerDied(RuntimeError):
    """The process ended while it worked: out of memory, or a crash."""


class WorkerRaised(RuntimeError):
    """The function raised; the message is the exception."""


class WorkerPool:
    """``size`` killable processes that call one function. Starts them when first needed.

    ``function`` is ``"module:name"``; it takes and returns something that pickles. ``env`` is added
    to the environment of the processes.
    """

    def __init__(
        self,
        function: str,
        *,
        size: int | None = None,
        memory_bytes: int = MEMORY_BYTES,
        max_jobs: int = MAX_JOBS,
        env: dict[str, str] | None = None,
    ) -> None:
        self.function = function
        self.size = size or min(len(os.sched_getaffinity(0)), 16)
        self.memory_bytes = memory_bytes
        self.max_jobs = max_jobs
        self.env = env or {}
        self._reset()
        _POOLS.add(self)

    def call(self, payload: Any, *, timeout_s: float) -> Any:
        """``function(payload)``. Waiting for a free process or its start is not in the deadline.

        Raises TimeoutError, WorkerDied, or WorkerRaised.
        """
        if self._pid != os.getpid():
            self._forget()
        try:
            keeper = self._free.get(timeout=WAIT_TIMEOUT_S)
        except queue.Empty:
            raise TimeoutError(
                f"no worker for {self.function} was free within {WAIT_TIMEOUT_S:g} s"
            ) from None
        try:
            return keeper.call(payload, timeout_s)
        finally:
            self._free.put(keeper)

    async def acall(self, payload: Any, *, timeout_s: float) -> Any:
        """``call`` beside the event loop, which it does not hold up."""
        return await in_thread(
            lambda: self.call(payload, timeout_s=timeout_s),
            WAIT_TIMEOUT_S + START_TIMEOUT_S + timeout_s + GRACE_S,
        )

    def start(self) -> None:
        """Start every process now instead of when it is needed."""
        if self._pid != os.getpid():
            self._forget()
        for keeper in self._keepers:
            keeper.start()

    def pids(self) -> list[int]:
        """The keepers that run now."""
        return [pid for keeper in self._keepers if (pid := keeper.pid) is not None]

    def close(self) -> None:
        """End all processes. A later call starts others."""
        if self._pid == os.getpid():
            for keeper in self._keepers:
                keeper.close()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._keepers = [_Keeper(self) for _ in range(self.size)]
        self._free: queue.LifoQueue[_Keeper] = queue.LifoQueue()
        for keeper in self._keepers:
            self._free.put(keeper)

    def _forget(self) -> None:
        """In a forked process: the keepers are the other process's. Let go of their pipes."""
        with _FORK_LOCK:
            if self._pid != os.getpid():
                for keeper in self._keepers:
                    keeper.forget()
                self._reset()


class _Keeper:
    """The calling side of one keeper process. Used by one thread at a time, but for ``close``."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def call(self, payload: Any, timeout_s: float) -> Any:
        with self._lock:
            process = self._started()
            try:
                _send(process.stdin, pickle.dumps((timeout_s, pickle.dumps(payload))))
                kind, result = _receive(process.stdout, timeout_s + GRACE_S)
            except (OSError, EOFError) as error:
                self._kill()
                raise WorkerDied(f"the worker of {self._pool.function} ended: {error}") from error
            except BaseException:  # a reply may be under way: the pipe cannot be used again
                self._kill()
                raise
        if kind == "timeout":
            raise TimeoutError(f"{self._pool.function}: no answer after {timeout_s:g} s")
        if kind == "died":
            raise WorkerDied(f"{self._pool.function}: {result}")
        if kind == "raised":
            raise WorkerRaised(result)
        return pickle.loads(result)

    def start(self) -> None:
        with self._lock:
            self._started()

    def close(self) -> None:
        with self._lock:
            self._kill()

    def forget(self) -> None:
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.returncode = 0  # not our child: never wait for it
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.raw.close()  # type: ignore[attr-defined]  # what is buffered is not ours

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        pool = self._pool
        paths = [str(Path(__file__).resolve().parent.parent), *filter(None, sys.path)]
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, pool.function,
             str(pool.memory_bytes), str(pool.max_jobs), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", **pool.env,
                 "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            start_new_session=True,  # Ctrl-C is the program's to handle
        )  # fmt: skip
        try:
            kind, result = _receive(process.stdout, START_TIMEOUT_S)
        except (OSError, EOFError) as error:
            self._kill()
            raise WorkerDied(f"the worker of {pool.function} did not start: {error}") from error
        if kind != "ready":
            self._kill()
            raise WorkerDied(f"the worker of {pool.function} did not start: {result}")
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close() if pipe else None
            except OSError:  # unwritten bytes to a dead process
                pass


_POOLS: WeakSet[WorkerPool] = WeakSet()
_FORK_LOCK = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_FORK_LOCK=threading.Lock()))


@atexit.register
def shutdown() -> None:
    """End the processes of every pool; they start again when needed."""
    for pool in list(_POOLS):
        pool.close()


def _send(pipe: Any, data: bytes) -> None:
    pipe.write(_HEADER.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: Any, timeout_s: float) -> Any:
    until = time.monotonic() + timeout_s
    (length,) = _HEADER.unpack(_read(pipe.fileno(), 4, until))
    return pickle.loads(_read(pipe.fileno(), length, until))


def _read(fd: int, count: int, until: float | None = None) -> bytes:
    """Exactly ``count`` bytes. Raises EOFError, or OSError when the time is up."""
    data = bytearray()
    while len(data) < count:
        if until is not None and not _readable(fd, until - time.monotonic()):
            raise OSError("it said nothing until its deadline")
        chunk = os.read(fd, min(count - len(data), 1 << 20))
        if not chunk:
            raise EOFError("it closed its pipe")
        data += chunk
    return bytes(data)


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # select() fails on descriptors above 1023
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(max(timeout_s, 0) * 1000))


# The other side of the pipes: everything below runs in the keeper and its child.

_PROGRAM = "import sys; from rewards.workers import keep; keep(*sys.argv[1:])"
POLL_S = 1.0


def keep(function: str, memory_bytes: str, max_jobs: str, parent: str) -> None:
    """The keeper: import the function's module, then pass jobs on to a child with a deadline."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints to nowhere
    module, _, name = function.partition(":")
    try:
        target = getattr(importlib.import_module(module), name)
        getattr(sys.modules[module], "warm_up", lambda: None)()
    except Exception as error:  # noqa: BLE001  boundary: the caller is told why
        _send(replies, pickle.dumps(("failed", f"{type(error).__name__}: {error}")))
        return
    child = _Child(target, int(memory_bytes), int(max_jobs), (0, replies.fileno()))
    _send(replies, pickle.dumps(("ready", None)))
    try:
        while _parent_waits(int(parent)):
            (length,) = _HEADER.unpack(_read(0, 4, time.monotonic() + GRACE_S))
            request = _read(0, length, time.monotonic() + GRACE_S)
            timeout_s, payload = pickle.loads(request)
            _send(replies, pickle.dumps(child.run(payload, timeout_s)))
    except (OSError, EOFError):  # the parent is gone
        pass
    finally:
        child.kill()


def _parent_waits(parent: int) -> bool:
    """Wait for the next job; False when the parent is gone."""
    while os.getppid() == parent:
        if _readable(0, POLL_S):
            return True
    return False


class _Child:
    """The process that works, seen from its keeper."""

    def __init__(
        self, target: Any, memory_bytes: int, max_jobs: int, private: tuple[int, ...]
    ) -> None:
        self.private = private  # the keeper's descriptors, closed in the child
        self.target = target
        self.memory_bytes = memory_bytes
        self.max_jobs = max_jobs
        self.pid = 0
        self._start()

    def run(self, payload: bytes, timeout_s: float) -> tuple[str, Any]:
        """(kind, result); the child is a new one after anything but an answer."""
        if not self.pid or self.jobs >= self.max_jobs:
            self._start()
        self.jobs += 1
        until = time.monotonic() + timeout_s
        try:
            os.write(self.requests, _HEADER.pack(len(payload)))
            self._write_all(payload, until)
            reply: tuple[str, Any] = pickle.loads(self._reply(until))
            return reply
        except TimeoutError:
            self._start()
            return "timeout", None
        except (OSError, EOFError):
            return "died", self._start()

    def kill(self) -> str:
        """End the child; says how it had ended if it already had."""
        if not self.pid:
            return ""
        pid, self.pid = self.pid, 0
        ended = ""
        for _ in range(20):  # a child that closed its pipe is about to end on its own
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended = f"it ended with status {os.waitstatus_to_exitcode(status)}"
                break
            time.sleep(0.001)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self.requests)
        os.close(self.replies)
        return ended

    def _start(self) -> str:
        ended = self.kill()
        self.jobs = 0
        theirs_in, self.requests = os.pipe()
        self.replies, theirs_out = os.pipe()
        keeper = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                _die_with_parent(keeper)
                for pipe in (self.requests, self.replies, *self.private):
                    os.close(pipe)
                _work(self.target, theirs_in, theirs_out, self.memory_bytes)
            finally:  # nothing of the keeper's code may run here
                os._exit(1)
        os.close(theirs_in)
        os.close(theirs_out)
        return ended

    def _write_all(self, payload: bytes, until: float) -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(self.requests, view[: 1 << 16]) :]
            if time.monotonic() > until:
                raise TimeoutError

    def _reply(self, until: float) -> bytes:
        header = self._read(4, until)
        return self._read(_HEADER.unpack(header)[0], until)

    def _read(self, count: int, until: float) -> bytes:
        data = b""
        while len(data) < count:
            if not _readable(self.replies, max(until - time.monotonic(), 0)):
                raise TimeoutError
            chunk = os.read(self.replies, count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


def _die_with_parent(keeper: int) -> None:
    """Have the kernel kill this process when its keeper ends (Linux)."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)


def _work(target: Any, requests: int, replies: int, memory_bytes: int) -> None:
    """The child: call the function for each request until the keeper is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.setrecursionlimit(3000)
    while True:
        try:
            (length,) = _HEADER.unpack(_read(requests, 4))
            payload = pickle.loads(_read(requests, length))
        except (OSError, EOFError):
            return
        try:
            reply = pickle.dumps(("ok", pickle.dumps(target(payload))))
        except BaseException as error:  # noqa: BLE001  boundary: model text, MemoryError included
            reply = pickle.dumps(("raised", f"{type(error).__name__}: {error}"[:2000]))
        with os.fdopen(os.dup(replies), "wb") as pipe:
            _send(pipe, reply)
