"""The contract between whoever judges untrusted programs and whatever runs them.

A sandbox runs one program to its end and reports what it wrote and how it ended. It never learns
what output was expected: judging happens in the caller's process. A program starts in an empty,
writable working directory that holds ``Program.files`` and nothing else, and everything it started
or wrote is gone when ``run`` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MEBIBYTE = 1 << 20


class SandboxError(RuntimeError):
    """The sandbox itself failed: the program was not judged, whatever it did."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use; a limit counts for everything it starts, together."""

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 512 * MEBIBYTE
    processes: int = 64  # threads included
    output_bytes: int = MEBIBYTE  # of stdout and of stderr, each
    disk_bytes: int = 64 * MEBIBYTE
    files: int = 2048  # inodes


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: ``argv[0]`` is looked up on the sandbox's own PATH."""

    argv: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)  # relative path -> content
    stdin: bytes = b""
    limits: Limits = Limits()


class Ending(StrEnum):
    EXIT = "exit"  # by itself; see exit_code
    SIGNAL = "signal"  # see signal
    WALL = "wall"  # killed: out of wall time
    CPU = "cpu"  # killed: out of CPU time
    MEMORY = "memory"  # killed: out of memory
    OUTPUT = "output"  # killed: wrote more than output_bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended and what it wrote, cut at ``output_bytes`` each."""

    ending: Ending
    exit_code: int | None  # with Ending.EXIT only
    signal: int | None  # with Ending.SIGNAL only
    stdout: bytes
    stderr: bytes
    wall_s: float

    @property
    def ok(self) -> bool:
        return self.ending is Ending.EXIT and self.exit_code == 0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may use. ``whole`` holds for all of it together, ``wall_s`` for its life."""

    whole: Limits = Limits(wall_s=3600.0, cpu_s=600.0)
    call_s: float = 10.0  # wall time of one call
    output_bytes: int = 64 << 10  # of one call; what is more is left out


class SessionOver(Exception):
    """The session has ended by what ran in it, with all its files: ``ending`` says how."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"the session has ended, and its files are lost ({ending})")
        self.ending = ending


@dataclass(frozen=True, slots=True)
class Said:
    """What one call in a session wrote, stdout and stderr together, and how it ended."""

    output: bytes
    dropped: int  # bytes beyond ``output_bytes``
    ending: Ending  # EXIT, WALL when it was out of time, or SIGNAL
    exit_code: int | None
    state_lost: bool  # variables, the shell's folder and processes are gone; files are there

    @property
    def ok(self) -> bool:
        return self.ending is Ending.EXIT and self.exit_code == 0


class Session(Protocol):
    """An interpreter and a shell that keep their state from one call to the next, over one folder.

    For one thread at a time; ``close`` may come from another. All methods but ``close`` raise
    SessionOver, also later than the call that ended it, and SandboxError.
    """

    def python(self, code: str) -> Said:
        """Run code in the interpreter; the value of a last expression is written too."""
        ...

    def shell(self, command: str) -> Said:
        """Run a command in the shell, without input."""
        ...

    def read(self, path: str) -> bytes:
        """A file. Raises OSError when there is none."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Write a file, its folders too. Raises OSError."""
        ...

    def files(self) -> dict[str, bytes]:
        """All regular files of the working folder. Raises OSError when they are too large."""
        ...

    def close(self) -> None:
        """End it; nothing of it is left. A second call does nothing."""
        ...


class Sandbox(Protocol):
    """Runs untrusted programs. ``run`` may be called from many threads at once."""

    name: str  # "docker", "bubblewrap" or "process"
    layers: tuple[str, ...]  # the active isolation layers, for people: "no network", ...

    def run(self, program: Program) -> Finished:
        """Run to the end; waits for a free place first. Raises SandboxError."""
        ...

    def session(
        self, files: Mapping[str, bytes] | None = None, limits: SessionLimits | None = None
    ) -> Session:
        """Open a session on ``files``, with the same isolation as a program's. Raises SandboxError,
        also when there are too many at once."""
        ...

    def has(self, command: str) -> bool:
        """Whether the sandbox's own PATH has ``command`` (a compiler, an interpreter)."""
        ...

    def close(self) -> None:
        """End everything that belongs to the sandbox; a second call does nothing."""
        ...
