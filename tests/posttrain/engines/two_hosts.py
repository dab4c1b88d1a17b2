"""Two hosts on one machine: network namespaces, joined by two links that can be cut.

Link 0 is for the learner, link 1 for rollouts. Each host has a name and a folder of its own, and
does not see the other's: there it is covered by an empty file system. Needs root and iproute2;
starts nothing that outlives the ``with`` block.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("home", "far")
LINKS = 2
# What a host does before its program: take its name, and cover the other's folder.
_ENTER = 'hostname "$1"; mount -t tmpfs none "$2"; shift 2; exec "$@"'


def address(host, link):
    return f"10.77.{link}.{host + 1}"


class TwoHosts:
    def __init__(self, folder):
        self.folders = [folder / name for name in NAMES]
        self._ids = [f"pt{os.getpid()}{name}" for name in NAMES]
        self._processes = []

    def __enter__(self):
        for host, folder in enumerate(self.folders):
            (folder / "tmp").mkdir(parents=True)
            self._short(host).symlink_to(folder / "tmp")
        try:
            for name in self._ids:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            for link in range(LINKS):
                self._join(link)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        for process in self._processes:
            process.kill()
            process.wait()
        for name in self._ids:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in pids.stdout.split():  # what a killed process left
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    """It has ended."""
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        for host in range(len(self.folders)):
            self._short(host).unlink(missing_ok=True)

    def _short(self, host):
        """A name for the host's temporary folder: vLLM's sockets there have at most 107 letters."""
        return Path(tempfile.gettempdir()) / self._ids[host]

    def _join(self, link):
        one, two = self._ids
        name = f"link{link}"
        _ip("link", "add", name, "netns", one, "type", "veth", "peer", "name", name, "netns", two)
        for host, namespace in enumerate(self._ids):
            _ip("-n", namespace, "addr", "add", f"{address(host, link)}/24", "dev", name)
            _ip("-n", namespace, "link", "set", name, "up")

    def cut(self, link):
        """Nothing passes any more, and nobody is told."""
        _ip("-n", self._ids[1], "link", "set", f"link{link}", "down")

    def mend(self, link):
        _ip("-n", self._ids[1], "link", "set", f"link{link}", "up")

    def command(self, host, *arguments):
        enter = ["ip", "netns", "exec", self._ids[host], "unshare", "--mount", "--uts"]
        return [*enter, "sh", "-c", _ENTER, "sh", NAMES[host], str(self.folders[1 - host]),
                *map(str, arguments)]  # fmt: skip

    def start(self, host, log, *arguments, **environment):
        """A program on a host; what it prints goes to the file ``log`` in the host's folder."""
        with (self.folders[host] / log).open("wb") as output:
            process = subprocess.Popen(
                self.command(host, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folders[host],
                env=self.environment(host) | environment,
            )
        self._processes.append(process)
        return process

    def output_of(self, host, *arguments):
        done = subprocess.run(
            self.command(host, *arguments),
            capture_output=True, text=True, timeout=60, cwd=self.folders[host],
            env=self.environment(host),
        )  # fmt: skip
        return done.returncode, done.stdout

    def ranks(self, host):
        """Ids of the learner's ranks that live on the host; their launcher is not one."""
        pids = subprocess.run(["ip", "netns", "pids", self._ids[host]], capture_output=True)
        found = []
        for pid in map(int, pids.stdout.split()):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"posttrain.learner.rank" in line and b"torch.distributed" not in line:
                found.append(pid)
        return found

    def environment(self, host):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"TMPDIR": str(self._short(host)), "PYTHONPATH": str(ROOT), "PATH": path}
        return without_ranks() | own | {"OMP_NUM_THREADS": "1"}

    def log(self, host, name):
        return (self.folders[host] / name).read_text(errors="replace")


def without_ranks():
    """This process's environment, less what a learner that ran in it has left there."""
    left = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in left}


def require():
    """Skip the test where namespaces can't be made."""
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: apt-get install iproute2 util-linux (make sandbox-host)")
    if os.geteuid() != 0:
        pytest.skip("not root: network namespaces can't be made")
    name = f"pt{os.getpid()}try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"network namespaces are not permitted here: {tried.stderr.strip()}")
    _ip("netns", "del", name)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
