"""The process behind one place of a sandbox: runs one program after another, each from scratch.

It is its own process so that starting a program never copies the page tables of a trainer, so that
no program is a child of ours, and so that one SIGKILL ends a place with everything in it. It is
started by ``rewards.sandbox.place``, which it talks to by frames (``rewards.sandbox.wire``), and
ends when that side of the channel closes. ::

    launcher (outer)       waits; killed when a run gets stuck
      launcher (inner)     first of its own pid, mount (and, if not root, user) namespace
        init               first of the program's pid namespace (rewards.sandbox.init)
          the program      in bubblewrap's user, mount, network, ipc, uts, cgroup namespaces

Without bubblewrap ("process") there are no namespaces, and one launcher.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from rewards.sandbox import cgroups, drain, files, init, kernel, rootfs, usage, wire
from rewards.sandbox.protocol import Limits, SandboxError

STAGE = "/dev/shm"  # is everywhere, and what it holds is not needed in here
STAGE_BYTES = 16 << 20
EXTRA_FILES = 1 + len(rootfs.FOLDERS)  # of the box itself
DESCRIPTORS = 256


class Ground(Protocol):
    """Where programs run."""

    bubblewrap: list[str]

    def fresh(self, limits: Limits) -> str:
        """An empty folder for the program's files."""
        ...

    def fork(self) -> int:
        """``os.fork``, into a new pid namespace where there is one."""
        ...

    def clear(self) -> None:
        """End what is left of the program, and remove what it wrote."""
        ...


class Namespaces:
    """The ground of bubblewrap: a mount namespace of our own with a tmpfs for each program."""

    def __init__(self, config: dict[str, Any], user: int) -> None:
        self.user = user
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        kernel.mount("tmpfs", STAGE, "tmpfs", kernel.MS_NOSUID, f"size={STAGE_BYTES},mode=0755")
        toolchains: list[str] = config["toolchains"]
        for i, folder in enumerate(toolchains):
            # Bound while we may still read it: the program's user may not even see its parent.
            os.mkdir(f"{STAGE}/{i}")
            kernel.mount(folder, f"{STAGE}/{i}", "", kernel.MS_BIND | kernel.MS_REC)
        rootfs.copy_etc(f"{STAGE}/etc")
        os.mkdir(f"{STAGE}/run")
        disable = bool(config["disable_userns"])
        arguments = rootfs.bwrap_arguments(STAGE, toolchains, disable_userns=disable)
        self.bubblewrap = [config["bwrap"], *arguments]
        self.mounted = False

    def fresh(self, limits: Limits) -> str:
        owner = self.user if self.user >= 0 else os.getuid()
        options = f"size={limits.disk_bytes},nr_inodes={limits.files + EXTRA_FILES},mode=0700"
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", f"{STAGE}/run", "tmpfs", flags, options)
        self.mounted = True
        os.chown(f"{STAGE}/run", owner, -1)
        for name in rootfs.FOLDERS:
            os.mkdir(f"{STAGE}/run/{name}", 0o700)
            os.chown(f"{STAGE}/run/{name}", owner, -1)
        return f"{STAGE}/run/{rootfs.FOLDERS[0]}"

    def fork(self) -> int:
        kernel.unshare(kernel.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:  # what is forked next stays with us, until the next call
                kernel.enter(self.own_pids, kernel.CLONE_NEWPID)
        return pid

    def clear(self) -> None:
        if self.mounted:
            kernel.unmount(f"{STAGE}/run")
            self.mounted = False


class Bare:
    """The ground of "process": a folder, and processes that can be found again."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.bubblewrap: list[str] = []
        kernel.adopt_orphans()
        kernel.no_new_privileges()
        self.folder = tempfile.mkdtemp(prefix="rewards-sandbox-", dir=config["folder"])
        os.environ.update(config["environment"], HOME=self.folder, TMPDIR=self.folder)

    def fresh(self, limits: Limits) -> str:
        os.chdir("/")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.mkdir(self.folder, 0o700)
        os.chdir(self.folder)
        return self.folder

    def fork(self) -> int:
        return os.fork()

    def clear(self) -> None:
        """Kill what has become our child until no process is left: a daemon cannot hide."""
        while left := usage.descendants(os.getpid()):
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        os.chdir("/")
        shutil.rmtree(self.folder, ignore_errors=True)


class Launcher:
    """Answers requests on ``channel`` until it closes."""

    def __init__(self, channel: socket.socket, config: dict[str, Any]) -> None:
        self.channel = channel
        self.talk = -1  # of a session: the socket that is its program's standard input and output
        self.user = int(config["user"])  # what programs run as; -1: as ourselves
        group = config["group"]
        self.group = cgroups.Group(**group) if group else None
        if self.group:
            # We join, and each program with us: moving it alone makes the kernel wait 15 ms.
            self.group.join()
        self.limit_processes = bool(config["limit_processes"])
        bare = config["kind"] == "process"
        self.ground: Ground = Bare(config) if bare else Namespaces(config, self.user)
        self.seccomp = -1
        if config["seccomp"]:
            self.seccomp = os.memfd_create("seccomp")
            os.write(self.seccomp, bytes.fromhex(config["seccomp"]))

    def serve(self) -> None:
        wire.send(self.channel, {"ready": True})
        while True:
            self.channel.setblocking(True)
            header, (stdin, *contents) = wire.receive(self.channel)
            self.talk = _received(self.channel) if header["talks"] else -1
            try:
                answer, blobs = self.run(header, stdin, contents)
            except (OSError, SandboxError, ValueError) as error:
                answer, blobs = {"error": f"{type(error).__name__}: {error}"}, []
            if self.talk >= 0:  # it never started: our side learns at once
                os.close(self.talk)
                self.talk = -1
            self.channel.setblocking(True)
            wire.send(self.channel, answer, blobs)

    def run(
        self, header: dict[str, Any], stdin: bytes, contents: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """One program from an empty folder to the last process. Raises SandboxError, OSError."""
        limits = Limits(**header["limits"])
        try:
            folder = self.ground.fresh(limits)
            files.put(folder, header["paths"], contents, self.user)
            if self.group:
                ours = len(stdin) + sum(map(len, contents))  # the program's own copy counts
                self.group.limit(limits.memory_bytes + ours, limits.processes)
            running = self._start(header["argv"], stdin, limits)
            try:
                used = self._usage(limits)
                watch = drain.Watch(running, limits, used, self.channel)
                try:
                    verdict = watch.until_ended()
                finally:
                    drain.end(running.pid)
                verdict = watch.finish(verdict)
                output = [bytes(watch.output[fd]) for fd in (running.stdout, running.stderr)]
            finally:
                running.close()
        finally:
            self.ground.clear()
        answer = {"ending": verdict.ending, "value": verdict.value, "wall_s": verdict.wall_s}
        return answer, output

    def _usage(self, limits: Limits) -> usage.Usage:
        if self.group:
            return usage.ByGroup(self.group, limits)
        return usage.ByLooking(lambda: usage.descendants(os.getpid()), limits)

    def _start(self, argv: list[str], stdin: bytes, limits: Limits) -> drain.Running:
        source = _as_file(stdin) if self.talk < 0 else self.talk
        events, events_theirs = os.pipe()
        out, out_theirs = os.pipe()
        err, err_theirs = os.pipe()
        theirs = (events_theirs, source, out_theirs, err_theirs)
        start = init.Start(
            argv,
            self.ground.bubblewrap,
            stdio=(source, out_theirs if self.talk < 0 else self.talk, err_theirs),
            events=events_theirs,
            become=self._becoming(limits),
            seccomp=self.seccomp,
            processes=limits.processes if self.limit_processes and self.user < 0 else 0,
        )
        pid = self.ground.fork()
        if pid == 0:
            init.run(start)
        for fd in theirs:
            os.close(fd)
        self.talk = -1
        return drain.Running(pid, events, out, err)

    def _becoming(self, limits: Limits) -> Callable[[], None]:
        """What a program's process does to itself before it is one: group, limits, user."""

        def become() -> None:
            with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")  # the kernel ends the program before the launcher
            cpu_s = int(limits.cpu_s) + 1
            hard: dict[int, tuple[int, int]] = {
                resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
                resource.RLIMIT_FSIZE: (limits.disk_bytes,) * 2,
                resource.RLIMIT_CORE: (0, 0),
                resource.RLIMIT_NOFILE: (DESCRIPTORS,) * 2,
                resource.RLIMIT_MSGQUEUE: (0, 0),
            }
            if not self.group:
                hard[resource.RLIMIT_DATA] = (limits.memory_bytes,) * 2
            if self.user >= 0:
                hard[resource.RLIMIT_NPROC] = (limits.processes + 1,) * 2  # bubblewrap's monitor
            for which, values in hard.items():
                resource.setrlimit(which, values)
            if self.user >= 0:
                os.setgroups([])
                os.setresgid(self.user, self.user, self.user)
                os.setresuid(self.user, self.user, self.user)

        return become


def _as_file(content: bytes) -> int:
    """A file in memory, open at its start."""
    fd = os.memfd_create("stdin")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _received(channel: socket.socket) -> int:
    """The descriptor that comes after a request. Raises EOFError."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        raise EOFError("no descriptor came")
    return descriptors[0]


def main(fd: int) -> None:
    """Serve the place whose socket is open as ``fd``."""
    os.set_inheritable(fd, False)  # it was, to get here; no program may have it
    channel = socket.socket(fileno=fd)
    config, _ = wire.receive(channel)
    try:
        if config["kind"] != "process" and not _enter_namespaces(bool(config["user_namespace"])):
            return
        kernel.set_dumpable(False)  # programs of the same user may not look in here
        kernel.hide_arguments()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        launcher = Launcher(channel, config)
    except (OSError, SandboxError) as error:
        wire.send(channel, {"error": str(error)})
        return
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, drain.Abandoned):
        launcher.serve()


def _enter_namespaces(user_namespace: bool) -> bool:
    """True in the inner launcher; False in the outer, when the inner has ended."""
    uid, gid = os.getuid(), os.getgid()
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
    kernel.unshare(flags | (kernel.CLONE_NEWUSER if user_namespace else 0))
    if user_namespace:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    inner = os.fork()
    if inner:
        os.waitpid(inner, 0)
        return False
    kernel.die_with_parent(signal.SIGKILL)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount_proc()
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]))
