"""Runs a command, and ends it with all its descendants when the process that asked for it is gone.

Started as a script, with the command as its arguments and a pipe as its standard input. The pipe
closes when the orchestrator closes it, and also when the orchestrator dies in any way, ``kill -9``
included: then the whole process group is asked to end, and after a grace period killed. The guard
leads a session of its own, so that Ctrl-C in the terminal reaches the orchestrator alone.

A guard that is itself stopped (SIGSTOP to its group) could not see the pipe close, so the kernel is
asked to continue it when its parent dies. What is stopped below it needs no waking: SIGKILL ends a
stopped process too.

Imports the standard library only: it starts in milliseconds. It always ends by killing its own
group, so its exit status says nothing; the command's status goes to the log.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

GUARD = [sys.executable, "-I", "-S", __file__]  # before the words of the command
GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> None:
    signal.signal(signal.SIGTERM, _ignore)  # a handler, unlike SIG_IGN, is not inherited
    # Sent also when only the parent's thread that started us ends, which then does no harm. A
    # parent that is gone already has closed the pipe.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    exited = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(exited, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)  # POLLHUP is always reported
    ready = {descriptor for descriptor, _ in poll.poll()}
    if exited in ready:
        print(f"the command ended by itself, status {child.wait()}", file=sys.stderr)
    else:
        os.killpg(0, signal.SIGTERM)
        select.select([exited], [], [], GRACE_S)
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)


def _ignore(*_: object) -> None:
    """SIGTERM to the group is meant for the others in it."""


if __name__ == "__main__":
    main(sys.argv[1:])
