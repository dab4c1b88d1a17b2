"""A Docker engine of the tests' own: its socket, data and processes are in one folder, then gone.

It needs root and Debian's docker.io (`scripts/sandbox_host.sh` installs it); ``why_not`` says what
is missing. Containers get no network anyway, so the engine makes no bridge and no firewall rules.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from rewards.sandbox.docker_engine import Engine, EngineError

START_S = 40.0
STOP_S = 30.0
ROOM_BYTES = 3 << 30
DRIVERS = ("overlay2", "fuse-overlayfs", "vfs")  # quickest first; vfs copies the image every time
PR_SET_PDEATHSIG = 1


def why_not() -> str | None:
    """None where an engine can be started, else what is missing."""
    if os.geteuid() != 0:
        return "starting a Docker engine needs root"
    for command in ("dockerd", "containerd", "runc"):
        if shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return f"{command} is not installed: run scripts/sandbox_host.sh"
    if not any(Path("/sys/fs/cgroup").glob("*")):
        return "no control groups are mounted"
    return None


def remove_group(group: Path, timeout_s: float = 20.0) -> None:
    """A control group is busy for as long as the kernel is taking its last process apart."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class DockerEngine:
    """A running dockerd; ``url`` is where it listens. Raises RuntimeError when none starts."""

    def __init__(self, url: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="posttrain-dockerd-", dir=roomy_folder()))
        self.url = url or f"unix://{self.folder}/docker.sock"
        self.said = ""
        for self.driver in DRIVERS:
            self.start()
            if self.process.poll() is None:
                return
        self._remove_folder()
        raise RuntimeError(f"no dockerd starts here; the last one said:\n{self.said}")

    def start(self) -> None:
        """Start it, again after ``crash``; returns when it answers or has ended."""
        log = (self.folder / "log").open("wb")
        with log:
            self.process = subprocess.Popen(
                [
                    "dockerd",
                    *("--host", self.url, "--tls=false"),
                    *("--data-root", str(self.folder / "data")),
                    *("--exec-root", str(self.folder / "exec")),
                    *("--pidfile", str(self.folder / "pid")),
                    *("--storage-driver", self.driver),
                    *("--iptables=false", "--ip6tables=false", "--bridge=none"),
                ],
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we stop it after the containers
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                Engine(self.url).info()
                return
            except EngineError:
                time.sleep(0.1)
        self.said = (self.folder / "log").read_text(errors="replace")[-2000:]
        self._end()

    def crash(self) -> None:
        """As if the machine had lost its power: the engine and all that it started are gone."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + STOP_S
        while (left := self._processes()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended with another one
            time.sleep(0.05)
        for ident in os.listdir(self.folder / "data/containers"):
            for group in Path("/sys/fs/cgroup").glob(f"**/docker/{ident}"):
                remove_group(group)
        self._unmount()
        shutil.rmtree(self.folder / "exec")
        (self.folder / "pid").unlink()

    def stop(self) -> None:
        """End it and all that it started, and remove its folder."""
        self._end()
        self._remove_folder()

    def _processes(self) -> set[int]:
        """Those with our folder in their command line, and the containers, their children."""
        parents, found = {}, set()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
            if os.fsencode(self.folder) in line:
                found.add(int(entry))
        while below := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= below
        return found & set(parents)

    def _end(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _unmount(self) -> None:
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mount := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", mount], check=False)

    def _remove_folder(self) -> None:
        self._unmount()
        shutil.rmtree(self.folder)


def roomy_folder() -> str:
    """In memory where there is room: an image has ten thousand small files. The path is short,
    since it becomes that of a socket."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES:
        return str(memory)
    return "/tmp"


def die_with_parent() -> None:
    """dockerd ends in an orderly way even when the tests are killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
