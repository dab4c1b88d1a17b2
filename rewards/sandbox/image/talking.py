"""Decides how the agent relays between our process and a program that answers requests: a session.

The program reads frames of four bytes of length and content on its standard input, and writes one
such frame for each on its standard output. What comes for it is a job ``tell``; its answer goes
back at once. A job ``end`` ends it. Limits hold throughout, as for any program; one that writes
without being asked is ended.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable
from typing import Any

from rewards.sandbox.image import frames
from rewards.sandbox.image.meter import Meter
from rewards.sandbox.image.run import Run
from rewards.sandbox.image.syscalls import Filters

LENGTH = struct.Struct(">I")
ANSWER_BYTES = 72 << 20
TELL_BYTES = 256 << 20


class Talk(Run):
    """One program that is spoken to; ``asked`` is the id of the job that waits for an answer."""

    def __init__(
        self,
        job: dict[str, Any],
        tools: tuple[Meter, Filters],
        take: Callable[[int], bytes],
        give: Callable[[bytes], None],
    ) -> None:
        super().__init__(job, b"", *tools)
        self.take, self.give = take, give
        self.asked = ""
        self.stdin_fd = -1
        self.limits = {**self.limits, "output_bytes": ANSWER_BYTES}

    def _serve(self, stdin: Any, handle: int) -> None:
        self.stdin_fd = stdin.fileno()
        super()._serve(stdin, handle)
        self._answer()

    def _told(self) -> None:
        job, body = frames.read(self.take, TELL_BYTES)
        self.asked = job["id"]
        if job["do"] == "tell":
            self.stdin = memoryview(LENGTH.pack(len(body)) + body)
            self.poll.register(self.stdin_fd, select.POLLOUT)
        else:
            self.ending = "closed"

    def _fed(self, stdin: Any) -> None:
        self.poll.unregister(stdin.fileno())  # it stays open for the next request

    def _answer(self) -> None:
        """Hand on an answer that is whole."""
        said = next(iter(self.output.values()))
        if said and not self.asked:
            self.ending = "output"  # nobody has asked it
        if self.ending or len(said) < LENGTH.size:
            return
        (size,) = LENGTH.unpack_from(said)
        if size > ANSWER_BYTES - LENGTH.size:
            self.ending = "output"
        elif len(said) >= LENGTH.size + size:
            content = bytes(said[LENGTH.size : LENGTH.size + size])
            del said[: LENGTH.size + size]
            self.give(frames.pack({"id": self.asked, "said": True}, content))
            self.asked = ""

    def wait_to_be_asked(self) -> str:
        """After the end: the id of the job that is told of it."""
        if not self.asked:
            self.asked = frames.read(self.take, TELL_BYTES)[0]["id"]
        return self.asked
