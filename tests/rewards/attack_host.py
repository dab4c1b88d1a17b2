"""The host as the attacks' target: what there is to steal, reach, kill and leave behind.

Everything here is looked at from outside of the sandboxes, so that nothing depends on what a
program says about itself.
"""

from __future__ import annotations

import os
import queue
import secrets
import selectors
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

AT_ONCE = 4
T = TypeVar("T")
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue")


def several_at_a_time(action: Callable[[T], None], items: Iterable[T], deadline_s: float) -> None:
    """Do ``action`` to every item, in threads; returns at the deadline, done or not."""
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            action(item)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(AT_ONCE)]
    for one in workers:
        one.start()
    deadline = time.monotonic() + deadline_s
    for one in workers:
        one.join(max(0.0, deadline - time.monotonic()))


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes of this machine that contain ``mark``, in any container."""
    found = []
    for one in os.listdir("/proc"):
        if one.isdigit():
            try:
                line = Path(f"/proc/{one}/cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if mark.encode() in line:
                found.append(f"{one}: {line.decode(errors='replace')[:100]}")
    return found


def processes_below(ancestor: int) -> list[int]:
    """Children of ``ancestor``, their children, and so on, zombies too."""
    parents: dict[int, int] = {}
    for one in os.listdir("/proc"):
        if one.isdigit():
            try:
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(one)] = int(fields[1])
    found, new = [], [ancestor]
    while new:
        new = [one for one, parent in parents.items() if parent in new]
        found += new
    return found


class Host:
    """Listeners on every kind of address, a secret in every place, a process to be killed."""

    def __init__(self) -> None:
        self.mark = "mark" + secrets.token_hex(6)
        self.secret = "secret" + secrets.token_hex(12)
        self.folder = Path(tempfile.mkdtemp(prefix="attacked-"))
        self.witness = self.folder / "witness"
        self.secret_file = self.witness / "secret"
        self.visits: list[str] = []  # who reached a listener
        self._sockets = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self.folder.chmod(0o755)
        self.witness.mkdir()
        self.secret_file.write_text(self.secret)
        self.witness.chmod(0o777)
        self.victim = subprocess.Popen(["sleep", "3600"], stdin=subprocess.DEVNULL)
        self.tcp_port = self._listen(socket.AF_INET6, socket.SOCK_STREAM, ("::", 0))
        self.udp_port = self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0))
        self.unix_path = str(self.witness / "unix")
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, self.unix_path)
        os.chmod(self.unix_path, 0o777)
        self._listen(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self.mark)
        self.entries = sorted(os.listdir(self.witness))
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.free_port = one.getsockname()[1]
        self._watcher.start()

    def close(self) -> None:
        self._stop.set()
        self._watcher.join(5)
        for key in list(self._sockets.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._sockets.close()
        self.victim.kill()
        self.victim.wait(10)
        for path in (self.secret_file, Path(self.unix_path)):
            path.unlink(missing_ok=True)
        for folder in (self.witness, self.folder):
            folder.rmdir()  # raises if anything was left there

    def facts(self, attack: str) -> dict[str, object]:
        """What the attacker is told: where to look, but no secret."""
        return {
            "mark": self.mark_of(attack),
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "checkout": str(Path(__file__).resolve().parents[2]),
            "home": os.path.expanduser("~"),
            "hostname": socket.gethostname(),
            "secret_file": str(self.secret_file),
            "witness": str(self.witness),
            "victim": self.victim.pid,
            "address": own_address(),
            "tcp_port": self.tcp_port,
            "udp_port": self.udp_port,
            "free_port": self.free_port,
            "unix_path": self.unix_path,
            "abstract": self.mark,
        }

    def mark_of(self, attack: str) -> str:
        return f"{self.mark}-{attack}-end"

    def marked_files(self) -> list[str]:
        """Files that a program of ours made outside of a sandbox, by their names."""
        found = []
        for top in (*TEMPORARY, os.getcwd(), os.path.expanduser("~"), "/", "/etc", "/usr"):
            try:
                names = os.listdir(top)
            except OSError:
                continue
            found += [f"{top}/{name}" for name in names if self.mark in name]
        return found

    def _listen(self, family: int, kind: int, address: object) -> int:
        one = socket.socket(family, kind)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            one.listen(50)
        one.setblocking(False)
        self._sockets.register(one, selectors.EVENT_READ)
        name = one.getsockname()
        return name[1] if isinstance(name, tuple) else 0

    def _watch(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._sockets.select(0.1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                self.visits.append(str(one.getsockname()))
                if one.type == socket.SOCK_STREAM:
                    one.accept()[0].close()
                else:
                    one.recv(4096)


def own_address() -> str:
    """An address of this machine that is not the loopback; the loopback where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # sends nothing
            return str(one.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@contextmanager
def attacked_host() -> Iterator[Host]:
    host = Host()
    host.start()
    os.environ["REWARD_TEST_SECRET"] = host.secret
    try:
        yield host
    finally:
        del os.environ["REWARD_TEST_SECRET"]
        host.close()
