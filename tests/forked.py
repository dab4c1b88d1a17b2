"""Starts Python scripts as processes of their own, with torch and the rest imported already.

A small training job takes 6 s of one core, 4 of them for imports. One process imports them for
all tests and forks for each script; from there on it is as if ``python SCRIPT`` had been started:
a pid, signals, exit code, environment and standard streams of its own. ``start`` takes what
``subprocess.Popen`` does, as far as the tests need it, and what it returns behaves like one.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# Not pyarrow: it starts a thread, and threads don't survive a fork.
PRELOADED = (
    *("torch", "transformers.models.qwen3.modeling_qwen3", "deepspeed"),
    *("envs", "posttrain.learner.learner"),
)
STARTED_S = 240.0
MESSAGE_BYTES = 1 << 17


def start(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdout: Any = None,
    stderr: Any = None,
    start_new_session: bool = False,
) -> Forked:
    """Run ``[sys.executable, script, *arguments]``; the streams are files or None (inherited)."""
    interpreter, *argv = map(str, command)
    assert interpreter == sys.executable
    streams = [
        default if one is None else one.fileno() for one, default in ((stdout, 1), (stderr, 2))
    ]
    request = {
        "argv": argv,
        "env": dict(os.environ if env is None else env),
        "cwd": os.getcwd(),
        "session": start_new_session,
    }
    return Forked([interpreter, *argv], _zygote().ask(request, streams))


class Forked:
    """One script; the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, args: list[str], pid: int) -> None:
        self.args, self.pid = args, pid
        self.returncode: int | None = None
        self._exited = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._exited], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = _zygote().ask({"reap": self.pid})
            os.close(self._exited)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Zygote:
    """The process that has imported everything; it ends with this one, which closes the socket."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._socket.settimeout(STARTED_S)
        root = str(Path(__file__).resolve().parents[1])
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root},
                pass_fds=[other.fileno()],
            )

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))
            return int(self._socket.recv(64))


@cache
def _zygote() -> _Zygote:
    return _Zygote()


def serve(connection: socket.socket) -> list[str]:
    """Fork for each request; returns in the forked process only: its script and arguments."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
        if not message:
            raise SystemExit
        request = json.loads(message)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        elif answer := os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            connection.close()
            return become(request, descriptors)
        connection.send(str(answer).encode())


def become(request: dict[str, Any], descriptors: Sequence[int]) -> list[str]:
    """Make this process what ``python SCRIPT`` would have been."""
    if request["session"]:
        os.setsid()
    for stream, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    return sys.argv


def without_sklearn() -> None:
    """Where scikit-learn is installed, transformers imports it, and with it pandas and pyarrow."""
    import transformers.utils

    transformers.utils.is_sklearn_available = lambda: False


if __name__ == "__main__":
    without_sklearn()
    for name in PRELOADED:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would leave threads behind"
    runpy.run_path(serve(socket.socket(fileno=int(sys.argv[1])))[0], run_name="__main__")
