"""The bubblewrap backend: namespaces, a tmpfs, seccomp, rlimits, and a control group where we may.

No daemon and no image: a program sees the host's read-only toolchain (``rewards.sandbox.rootfs``).
``docs/sandbox.md`` has the threat model and what each limit means.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping

from rewards.sandbox import rootfs, seccomp, session
from rewards.sandbox.place import Place, Pool, TalkLine, check
from rewards.sandbox.protocol import Finished, Program, SandboxError, SessionLimits
from rewards.sandbox.session import OpenSession

# Ids no system hands out: 0x70000000 and up, below the range of containers and of nobody.
FIRST_USER = 0x70000000
NOBODY = 65534
SESSIONS = 256
PER_CORE = 2  # making and ending namespaces is half waiting for the kernel

_users = itertools.count()


class BubblewrapSandbox:
    """Runs programs under bubblewrap, ``places`` of them at once (default: two per core).

    ``sessions`` may be open at once beside them; each takes a process of some 15 MB.

    ``toolchains`` are further folders to show read-only, under their own paths, their ``bin`` at
    the end of PATH; the prefix of this Python is added by itself when /usr has no ``python3``.
    Raises SandboxError when it does not work here; ``available`` says why beforehand.
    """

    name = "bubblewrap"

    def __init__(
        self,
        places: int = 0,
        toolchains: tuple[str, ...] = (),
        *,
        sessions: int = SESSIONS,
        control_group: bool = True,
    ) -> None:
        self._most_sessions = sessions
        self._sessions: set[OpenSession] = set()
        self._toolchains = [os.path.realpath(one) for one in toolchains]
        if rootfs.find("python3", self._toolchains) is None:
            self._toolchains.append(os.path.realpath(sys.base_prefix))
        rootfs.check_toolchains(self._toolchains)
        self._bwrap, self._disable_userns = _command()
        self._filter = seccomp.program(platform.machine()) if seccomp.supported() else b""
        self._control_group = control_group
        self._user_namespace = os.geteuid() != 0
        first = self._first_place()  # fails now rather than at the first program
        self.layers = self._layers(first)
        self._pool = Pool(self._place, places or PER_CORE * len(os.sched_getaffinity(0)), first)

    @classmethod
    def available(cls) -> str | None:
        """None when it works on this machine, else what is missing and what would help."""
        try:
            cls(places=1).close()
        except SandboxError as error:
            return str(error)
        return None

    def run(self, program: Program) -> Finished:
        return self._pool.run(program)

    def session(
        self, files: Mapping[str, bytes] | None = None, limits: SessionLimits | None = None
    ) -> OpenSession:
        """A session, in a place beside those of ``run``. Raises SandboxError, UsageError,
        ValueError for files that cannot be."""
        limits = limits or SessionLimits()
        program = session.program(files, limits)
        check(program)
        self._sessions = {one for one in self._sessions if not one.closed}
        if len(self._sessions) >= self._most_sessions:
            raise SandboxError(
                f"{self._most_sessions} sessions are open: close one, or load with sessions=..."
            )
        line = TalkLine(self._place(), program)
        opened = OpenSession(line, limits)
        self._sessions.add(opened)
        return opened

    def has(self, command: str) -> bool:
        return rootfs.find(command, self._toolchains) is not None

    def close(self) -> None:
        for one in self._sessions:
            one.close()
        self._pool.close()

    def _first_place(self) -> Place:
        """Root without the right to mount (in a container, say) may still have user namespaces."""
        try:
            return self._place()
        except SandboxError:
            if self._user_namespace:
                raise
        self._user_namespace = True
        return self._place()

    def _place(self) -> Place:
        config = {
            "kind": "bubblewrap",
            "bwrap": self._bwrap,
            "toolchains": self._toolchains,
            "disable_userns": self._disable_userns,
            "user_namespace": self._user_namespace,
            "user": -1 if self._user_namespace else _unused_user(),
            "limit_processes": self._limits_processes(),
            "seccomp": self._filter.hex(),
        }
        place = Place(config, control_group=self._control_group)
        try:
            probe = place.run(Program(("true",)))
        except BaseException:
            place.close()
            raise
        if not probe.ok:
            place.close()
            said = probe.stderr.decode(errors="replace").strip()
            raise SandboxError(f"bubblewrap could not run `true`: {probe.ending}, {said}")
        return place

    def _limits_processes(self) -> bool:
        """RLIMIT_NPROC counts per user namespace since Linux 5.14, before that per user; it never
        holds for root."""
        if self._user_namespace:
            return os.geteuid() != 0 and _kernel() >= (5, 14)
        return True

    def _layers(self, place: Place) -> tuple[str, ...]:
        """What is active, for people; what is not, is said too."""
        group = place.group
        limits = ("memory", "processes", *(["CPU time"] if group and group.cpu else []))
        return (
            "user, pid, mount, network, ipc and uts namespaces",
            "nested user namespaces disabled"
            if self._disable_userns
            else "nested user namespaces refused by seccomp only"
            if self._filter
            else "nested user namespaces NOT disabled",
            "runs as the caller's user" if self._user_namespace else "runs as a user of its own",
            "no capabilities, no new privileges",
            f"seccomp filter ({len(seccomp.DENIED)} calls, no sockets but unix)"
            if self._filter
            else f"NO seccomp filter: no table for {platform.machine()}",
            "read-only host toolchain, tmpfs limited in bytes and inodes",
            f"cgroup v{group.version}: {', '.join(limits)}"
            if group
            else "NO cgroup: memory, CPU time and processes by rlimits and by looking every 20 ms",
        )


def _command() -> tuple[str, bool]:
    """Where bwrap is, and whether it can disable user namespaces. Raises SandboxError."""
    if not sys.platform.startswith("linux"):
        raise SandboxError("bubblewrap runs on Linux only")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("no bwrap command: install the system's package bubblewrap")
    try:
        told = subprocess.run([bwrap, "--help"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{bwrap} does not run: {error}") from error
    return bwrap, b"--disable-userns" in told.stdout


def _unused_user() -> int:
    """An id that is nobody else's, so that what a program owns or counts is its alone."""
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    wanted = FIRST_USER + (os.getpid() << 6) % (1 << 27) + next(_users) % 64
    if any(first <= wanted < first + count for first, _, count in ranges):
        return wanted
    return NOBODY


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))
