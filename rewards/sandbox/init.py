"""The first process of a program's pid namespace: starts it, sees how it ends, takes all with it.

It is forked by the launcher, so it costs no start of an interpreter, and it answers through a pipe:
``STARTED`` when the program's own time begins, ``ENDED`` with the exact wait status, or ``FAILED``
with a reason. When it exits the kernel kills whatever is left in the namespace.

bubblewrap's monitor would turn a signal into exit code 128 + n, which a program can also choose by
itself. So the monitor is killed once the sandbox stands, the program becomes a child of this
process, and the kernel's own answer is read. How that is done without a race:

- ``--file`` gets one end of a socket pair. bubblewrap reads it to its end, which is at once, and
  closes it while building the sandbox; its monitor closes what it does not need. So when our end
  reads "closed", the monitor has nothing left to do.
- ``--block-fd`` holds the program back, as the last step but seccomp, until we write one byte.
  In between the monitor is killed and the number of processes limited: that limit counts per user
  namespace only if it is set after the namespace was made.
- If the byte is still unread when the program is gone, it never started: the sandbox failed.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import resource
import signal
import socket
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from rewards.sandbox import kernel
from rewards.sandbox.drain import ENDED, FAILED, STARTED, WAIT_STATUS

RESET = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)  # those that Python handles or ignores


@dataclass(frozen=True, slots=True)
class Start:
    """What the init process needs; all descriptors are its own."""

    program: list[str]
    bubblewrap: list[str]  # the command and its options so far; empty: run the program bare
    stdio: tuple[int, int, int]
    events: int
    become: Callable[[], None]  # in the child, before exec: limits, group, user
    seccomp: int = -1  # the filter, as a file
    processes: int = 0  # 0: not limited here


def run(start: Start) -> NoReturn:
    """Be the init process of one program. Never returns."""
    try:
        program = _in_bubblewrap(start) if start.bubblewrap else _bare(start)
        os.write(start.events, ENDED + WAIT_STATUS.pack(program))
    except BaseException as error:  # noqa: BLE001  boundary: whatever it is goes to the launcher
        os.write(start.events, FAILED + f"{type(error).__name__}: {error}".encode()[:2000])
    os._exit(0)


def _bare(start: Start) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        execute(start, start.program)
    os.write(start.events, STARTED)
    return reap_until(child)


def _in_bubblewrap(start: Start) -> int:
    """Build the sandbox, let the program run; its wait status. Raises OSError, RuntimeError."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount_proc()  # bubblewrap looks itself up by the numbers of this pid namespace
    built_ours, built_theirs = socket.socketpair()
    go_read, go_write = os.pipe()
    info_read, info_write = os.pipe()
    passed = [built_theirs.fileno(), go_read, info_write]
    options = ["--file", str(passed[0]), "/.built", "--remount-ro", "/"]
    options += ["--block-fd", str(go_read), "--info-fd", str(info_write)]
    if start.seccomp >= 0:
        os.lseek(start.seccomp, 0, os.SEEK_SET)
        options += ["--seccomp", str(start.seccomp)]
        passed.append(start.seccomp)
    monitor = os.fork()
    if monitor == 0:
        execute(start, [*start.bubblewrap, *options, "--", *start.program], passed)
    built_theirs.close()
    os.close(info_write)
    built_ours.shutdown(socket.SHUT_WR)
    child = _child_pid(info_read)
    built_ours.recv(1)
    if start.processes:
        resource.prlimit(child, resource.RLIMIT_NPROC, (start.processes, start.processes))
    os.kill(monitor, signal.SIGKILL)
    os.write(start.events, STARTED)
    os.write(go_write, b"g")  # cannot break: we hold the other end too
    try:
        status = reap_until(child)
    except ChildProcessError:  # the monitor had reaped it before it was killed
        raise RuntimeError("bubblewrap could not build the sandbox") from None
    unread = array.array("i", [0])
    fcntl.ioctl(go_read, termios.FIONREAD, unread)
    if unread[0]:
        raise RuntimeError("bubblewrap could not finish the sandbox")
    return status


def execute(start: Start, argv: list[str], passed: Sequence[int] = ()) -> NoReturn:
    """In the forked child: become the program, or say on its stderr why not and exit 127."""
    try:
        for number in RESET:
            signal.signal(number, signal.SIG_DFL)
        for fd, original in enumerate(start.stdio):
            os.dup2(original, fd)
        for fd in passed:
            os.set_inheritable(fd, True)
        start.become()
        os.execvp(argv[0], argv)
    except BaseException as error:  # noqa: BLE001  boundary: must not return into the launcher
        os.write(2, f"{argv[0]}: {error}\n".encode())
    os._exit(127)


def _child_pid(info: int) -> int:
    text = b""
    while piece := os.read(info, 4096):
        text += piece
    os.close(info)
    if not text:
        raise RuntimeError("bubblewrap ended before it made the namespaces")
    return int(json.loads(text)["child-pid"])


def reap_until(wanted: int) -> int:
    """Reap every child as it ends, orphans included, until it is ``wanted``; its wait status."""
    while True:
        pid, status = os.wait()
        if pid == wanted:
            return status
