"""Decides what happens inside a container: runs one program after another, as its first process.

It takes jobs over its standard input and answers over its standard output (``frames``). Being
process 1 of the container, no signal from inside reaches it; not being dumpable, no process of the
same user can trace it, read its memory or open its pipes. After each program everything else in
the container is killed, everything writable is emptied (``room``), and the container is searched
for anything that is left. The answer says whether it is clean; one that is not must not be used
again. When the other end of standard input closes, so does the container.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
from dataclasses import dataclass
from typing import Any

from rewards.sandbox.image import frames
from rewards.sandbox.image.meter import Meter
from rewards.sandbox.image.room import WRITABLE, Ballast, clean_up, lay_out
from rewards.sandbox.image.run import ENVIRONMENT, PR_SET_DUMPABLE, Run
from rewards.sandbox.image.syscalls import Filters
from rewards.sandbox.image.talking import Talk

JOB_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Tools:
    """What lasts from one program to the next."""

    meter: Meter
    filters: Filters
    ballast: Ballast


def hello(meter: Meter) -> dict[str, Any]:
    """What is true of this container, as seen from inside."""
    with open("/proc/self/status") as lines:
        status = dict(line.split(":", 1) for line in lines)
    try:
        os.close(os.open("/posttrain-probe", os.O_CREAT | os.O_WRONLY))
        read_only = False
    except OSError as error:
        read_only = error.errno == errno.EROFS
    with open("/proc/net/dev") as lines:
        interfaces = sorted(line.split(":")[0].strip() for line in lines.readlines()[2:])
    space = {top: os.statvfs(top) for top in WRITABLE}
    return {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "no_new_privs": status["NoNewPrivs"].strip() == "1",
        "seccomp": status["Seccomp"].strip() == "2",
        "capabilities": sum(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")),
        "read_only": read_only,
        "interfaces": interfaces,
        "space": {top: [one.f_blocks * one.f_frsize, one.f_files] for top, one in space.items()},
        "memory": meter.memory_limit(),
        "clean": clean_up(),
    }


def perform(job: dict[str, Any], body: bytes, tools: Tools) -> bytes:
    """The answer to one job: run a program, hold a session, or look for a command."""
    if job["do"] == "has":
        found = shutil.which(job["command"], path=ENVIRONMENT["PATH"])
        return frames.pack({"id": job["id"], "found": found is not None})
    content = memoryview(body)
    try:
        tools.ballast.fit(job["limits"])
        lay_out(job["files"], content[job["stdin"] :])
    except (OSError, ValueError) as error:
        return frames.pack({"id": job["id"], "refused": str(error), "clean": clean_up()})
    if job["do"] == "session":
        return hold(job, tools)
    run = Run(job, bytes(content[: job["stdin"]]), tools.meter, tools.filters)
    run.to_end()
    cut = [bytes(data[: run.limits["output_bytes"]]) for data in run.output.values()]
    answer = {"id": job["id"], **run.report(), "stdout": len(cut[0]), "clean": clean_up()}
    return frames.pack(answer, b"".join(cut))


def hold(job: dict[str, Any], tools: Tools) -> bytes:
    """Relay to a program until it ends or must end; the answer to whoever spoke to it last."""
    talk = Talk(job, (tools.meter, tools.filters), take, give)
    give(frames.pack({"id": job["id"], "open": True}))
    talk.to_end()
    report, clean = talk.report(), clean_up()
    return frames.pack({"id": talk.wait_to_be_asked(), **report, "clean": clean})


def take(size: int) -> bytes:
    """Exactly ``size`` bytes of standard input; ends the container when it closes."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(0)
        data += piece
    return bytes(data)


def give(data: bytes) -> None:
    """Write all of it to standard output."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def main() -> None:
    """Serve until standard input closes."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a handler would let it in
    os.umask(0o022)
    os.closerange(3, 256)  # what we open ourselves is not inherited
    tools = Tools(Meter(), Filters(), Ballast())
    give(frames.pack(hello(tools.meter)))
    while True:
        job, body = frames.read(take, JOB_BYTES)
        give(perform(job, body, tools))


if __name__ == "__main__":
    main()
