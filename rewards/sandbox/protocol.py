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


class Sandbox(Protocol):
    """Runs untrusted programs. ``run`` may be called from many threads at once."""

    name: str  # "docker", "bubblewrap" or "process"
    layers: tuple[str, ...]  # the active isolation layers, for people: "no network", ...

    def run(self, program: Program) -> Finished:
        """Run to the end; waits for a free place first. Raises SandboxError."""
        ...

    def has(self, command: str) -> bool:
        """Whether the sandbox's own PATH has ``command`` (a compiler, an interpreter)."""
        ...

    def close(self) -> None:
        """End everything that belongs to the sandbox; a second call does nothing."""
        ...
