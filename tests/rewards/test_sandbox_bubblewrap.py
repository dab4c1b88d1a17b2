"""The bubblewrap backend, for real: endings, limits, what a program sees, and what is left."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rewards.sandbox
from rewards import UsageError
from rewards.sandbox import Ending, Limits, Program, SandboxError, cgroups, rootfs, seccomp
from rewards.sandbox.bubblewrap import BubblewrapSandbox

REASON = BubblewrapSandbox.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

# Wall time is generous where it does not decide: the machine may be busy.
BRIEF = Limits(wall_s=0.5, cpu_s=10.0)
LIMITS = Limits(wall_s=40.0, cpu_s=0.5)
USUAL = Limits(wall_s=40.0, cpu_s=10.0)
MANY = 40


@pytest.fixture(scope="module")
def sandbox() -> Iterator[BubblewrapSandbox]:
    opened = BubblewrapSandbox(places=2)
    yield opened
    opened.close()


def python(sandbox: rewards.sandbox.Sandbox, code: str, limits: Limits = USUAL) -> str:
    """What the code prints; it must end well."""
    finished = sandbox.run(Program(("python3", "-c", code), limits=limits))
    assert finished.ok, finished
    return finished.stdout.decode()


# endings


def test_what_a_program_writes_comes_back(sandbox: BubblewrapSandbox) -> None:
    program = Program(
        ("sh", "-c", "cat; cat a/b; echo oops >&2; exit 3"),
        files={"a/b": b"\xff\x00file"},
        stdin=b"in\r\n",
    )
    finished = sandbox.run(program)
    assert (finished.stdout, finished.stderr) == (b"in\r\n\xff\x00file", b"oops\n")
    assert (finished.ending, finished.exit_code, finished.signal) == (Ending.EXIT, 3, None)
    assert not finished.ok and 0 < finished.wall_s < 10


def test_an_exit_code_is_not_taken_for_a_signal(sandbox: BubblewrapSandbox) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGPIPE):
        exited = sandbox.run(Program(("sh", "-c", f"exit {128 + number}")))
        assert (exited.ending, exited.exit_code) == (Ending.EXIT, 128 + number)
        killed = sandbox.run(Program(("sh", "-c", f"kill -{int(number)} $$")))
        assert (killed.ending, killed.signal, killed.exit_code) == (Ending.SIGNAL, number, None)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import time; time.sleep(60)", Ending.WALL),
        ("while True: pass", Ending.CPU),
        ("import os; os.fork(); os.fork()\nwhile True: pass", Ending.CPU),
        ("x = b'a' * (1 << 30)", Ending.MEMORY),
        ("while True: print('x' * 1000)", Ending.OUTPUT),
        ("import os\nwhile True: os.write(2, b'x' * 1000)", Ending.OUTPUT),
    ],
    ids=["sleep", "loop", "loops", "memory", "stdout", "stderr"],
)
def test_a_limit_ends_the_program(sandbox: BubblewrapSandbox, code: str, ending: Ending) -> None:
    start = time.monotonic()
    limits = {Ending.WALL: BRIEF, Ending.CPU: LIMITS}.get(ending, USUAL)
    finished = sandbox.run(Program(("python3", "-c", code), limits=limits))
    assert finished.ending is ending, finished
    assert finished.exit_code is None and finished.signal is None
    assert max(len(finished.stdout), len(finished.stderr)) <= limits.output_bytes
    assert time.monotonic() - start < 30


def test_output_is_cut_exactly_at_its_limit(sandbox: BubblewrapSandbox) -> None:
    limits = Limits(output_bytes=1000)
    exact = sandbox.run(Program(("python3", "-c", "print('x' * 999)"), limits=limits))
    assert (exact.ending, len(exact.stdout)) == (Ending.EXIT, 1000)
    over = sandbox.run(Program(("python3", "-c", "print('x' * 1000)"), limits=limits))
    assert (over.ending, over.stdout) == (Ending.OUTPUT, b"x" * 1000)


def test_a_limit_on_disk_processes_and_files_is_an_error_inside(
    sandbox: BubblewrapSandbox,
) -> None:
    limits = Limits(disk_bytes=1 << 20, files=20, processes=10)
    code = """
import errno, os, sys, threading, time
def failing(act):
    try:
        act()
    except (OSError, RuntimeError) as error:
        return errno.errorcode.get(getattr(error, "errno", 0), type(error).__name__)
def write():
    for i in range(3):  # each smaller than the limit of a file
        with open(str(i), "wb") as file:
            file.write(b"x" * (700 << 10))
print(failing(write))
for i in range(3):
    if os.path.exists(str(i)): os.unlink(str(i))
print(failing(lambda: [open(f"/tmp/{i}", "w").close() for i in range(30)]))
print(failing(lambda: [threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
                       for _ in range(20)]))
sys.stdout.flush()
os._exit(0)  # not waiting for the threads
"""
    out = python(sandbox, code, limits)
    assert out.split() == ["ENOSPC", "ENOSPC", "RuntimeError"]


# what a program sees


def test_a_program_sees_a_folder_of_its_own_and_little_else(sandbox: BubblewrapSandbox) -> None:
    program = Program(("sh", "-c", "pwd; ls -A; echo; ls -A /"), files={"one": b""})
    here, name, rest = sandbox.run(program).stdout.decode().split("\n", 2)
    assert (here, name) == ("/box/work", "one")
    top = set(rest.split())
    assert {"usr", "etc", "box"} <= top
    assert not top & {"home", "root", "run", "sys", "var", "work", "mnt"}


def test_the_environment_is_the_sandboxs_own(
    sandbox: BubblewrapSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    out = python(sandbox, "import os; print(sorted(os.environ))")
    wanted = {*rootfs.environment([]), "PWD"}
    assert set(re.findall(r"'(\w+)'", out)) - {"LC_CTYPE"} == wanted


def test_nothing_of_the_host_is_in_proc(sandbox: BubblewrapSandbox) -> None:
    code = """
import os
pids = sorted(int(one) for one in os.listdir("/proc") if one.isdigit())
print(len(pids), repr(open("/proc/1/cmdline").read().strip(chr(0))))
for name in ("environ", "maps", "mem"):
    try:
        open(f"/proc/1/{name}").read(1)
        print("read", name)
    except OSError:
        pass
print(os.listdir("/proc/self/fd"))
"""
    first, fds = python(sandbox, code).splitlines()
    assert first == "2 ''"
    assert fds == "['0', '1', '2', '3']"  # the last is of the listing itself


def test_capabilities_privileges_and_user(sandbox: BubblewrapSandbox) -> None:
    out = python(sandbox, "import os; print(os.getuid(), open('/proc/self/status').read())")
    assert out.startswith("1000 ")
    assert set(re.findall(r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\s+(\w+)", out)) == {"0" * 16}
    assert re.search(r"NoNewPrivs:\s+1", out)
    if seccomp.supported():
        assert re.search(r"Seccomp:\s+2", out)


@pytest.mark.parametrize(
    "call",
    [
        "socket.socket(socket.AF_INET)",
        "socket.socket(40)",  # AF_VSOCK: the host of a virtual machine
        "os.unlink('/usr/bin/env')",
        "open('/etc/passwd', 'a')",
        "open('/x', 'w')",
        "open('/dev/x', 'w')",
        "os.memfd_create('x')",
        "check(libc.unshare(0x10000000))",
        "check(libc.ptrace(0, 0, 0, 0))",
        "check(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))",
        "check(libc.shmget(0, 4096, 0o1600))",
        "resource.setrlimit(resource.RLIMIT_CORE, (1, 1))",
    ],
)
def test_what_is_refused(sandbox: BubblewrapSandbox, call: str) -> None:
    code = f"""
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result == -1: raise OSError(ctypes.get_errno(), "refused")
try:
    {call}
except (OSError, ValueError):
    print("refused")
"""
    assert python(sandbox, code) == "refused\n"


def test_pipes_unix_sockets_shared_memory_and_processes_work(sandbox: BubblewrapSandbox) -> None:
    code = """
import asyncio, multiprocessing, socket
from multiprocessing import shared_memory
async def one(): return 1
if __name__ == "__main__":
    ours, theirs = socket.socketpair()
    ours.send(b"x")
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close(); memory.unlink()
    with multiprocessing.Pool(2) as pool:
        print(theirs.recv(1), asyncio.run(one()), pool.map(abs, [-1, 2]))
"""
    program = Program(("python3", "main.py"), files={"main.py": code.encode()})
    finished = sandbox.run(program)
    assert finished.stdout == b"b'x' 1 [1, 2]\n", finished


# what is left


def test_nothing_survives_a_run(sandbox: BubblewrapSandbox) -> None:
    mark = f"left-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("python3", ["{mark}", "-c", "import time; time.sleep(300)"])
    os._exit(0)
open("/tmp/{mark}", "w").write("x")
open("{mark}", "w").write("x")
time.sleep(0.3)
"""
    python(sandbox, code)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert mark not in running.stdout
    assert python(sandbox, "import os; print(os.listdir('/tmp'), os.listdir('.'))") == "[] []\n"
    assert not Path("/tmp", mark).exists()


def test_many_runs_leak_neither_descriptors_nor_processes_nor_mounts(
    sandbox: BubblewrapSandbox,
) -> None:
    def whole() -> tuple[int, int, int]:
        launchers = subprocess.run(["ps", "-eo", "ppid,pid,rss"], capture_output=True, text=True)
        mine = [row.split() for row in launchers.stdout.splitlines()[1:]]
        of_us = sum(row[0] == str(os.getpid()) for row in mine)
        return of_us, len(os.listdir("/proc/self/fd")), len(os.listdir(cgroup_folder()))

    def run(_: int) -> bool:
        return sandbox.run(Program(("true",))).ok

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
        before = whole()
        assert all(threads.map(run, range(MANY)))
        assert whole() == before


def cgroup_folder() -> str:
    return "/sys/fs/cgroup/pids" if os.path.isdir("/sys/fs/cgroup/pids") else "/sys/fs/cgroup"


def test_a_closed_sandbox_is_gone_with_all_that_ran_in_it() -> None:
    opened = BubblewrapSandbox(places=1)
    mark = f"800.{time.monotonic_ns() % 10**9}"
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(opened.run, Program(("sleep", mark), limits=Limits(wall_s=900)))
        wait_until(lambda: running(mark))
        opened.close()
        with pytest.raises(SandboxError, match="closed while"):
            run.result(timeout=30)
    opened.close()
    with pytest.raises(SandboxError, match="closed"):
        opened.run(Program(("true",)))
    wait_until(lambda: not running(mark))


def running(mark: str) -> bool:
    return mark in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


LOADER = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from rewards.sandbox.bubblewrap import BubblewrapSandbox
from rewards.sandbox import Program, Limits
sandbox = BubblewrapSandbox(places=1)
run = lambda: sandbox.run(Program(("sleep", "{seconds}"), limits=Limits(wall_s=1000)))
threading.Thread(target=run, daemon=True).start()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_death_of_the_caller_ends_its_programs(how: int) -> None:
    seconds = f"900.{time.monotonic_ns() % 10**9}"
    code = LOADER.format(root=str(Path(rewards.__file__).parents[1]), seconds=seconds)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == b"ready\n"
        wait_until(lambda: running(f"sleep {seconds}"))
        os.kill(caller.pid, how)
        caller.wait(30)
    wait_until(lambda: not running(f"sleep {seconds}"))


def test_a_lost_launcher_is_an_error_and_the_next_run_works() -> None:
    opened = BubblewrapSandbox(places=1)
    try:
        with ThreadPoolExecutor(1) as thread:
            lost = thread.submit(opened.run, Program(("sleep", "30"), limits=Limits(wall_s=60)))
            time.sleep(0.3)
            (place,) = opened._pool._started
            os.kill(place.process.pid, signal.SIGKILL)
            with pytest.raises(SandboxError):
                lost.result(timeout=30)
        assert opened.run(Program(("true",))).ok
    finally:
        opened.close()


# without what may be missing


def test_without_a_control_group_limits_still_hold() -> None:
    opened = BubblewrapSandbox(places=1, control_group=False)
    try:
        assert any("NO cgroup" in layer for layer in opened.layers)
        limits = Limits(wall_s=40, cpu_s=0.5, memory_bytes=64 << 20, processes=8)
        burn = "import os; os.fork()\nwhile True: pass"
        assert opened.run(Program(("python3", "-c", burn), limits=limits)).ending is Ending.CPU
        big = opened.run(Program(("python3", "-c", "b'x' * (1 << 28)"), limits=limits))
        assert b"MemoryError" in big.stderr and big.exit_code == 1
        shared = "import mmap, time; m = mmap.mmap(-1, 1 << 27); m.write(b'x' * (1 << 27))"
        many = Program(
            (
                "python3",
                "-c",
                shared.replace("b'x' * (1 << 27)", "bytes(1 << 20) * 100") + "; time.sleep(5)",
            ),
            limits=limits,
        )
        assert not opened.run(many).ok
        bomb = "import os, time\nfor _ in range(20): os.fork() or time.sleep(9)"
        assert not opened.run(Program(("python3", "-c", bomb), limits=limits)).ok
        assert opened.run(Program(("true",))).ok
    finally:
        opened.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in /tmp, which the sandbox has its own of."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_toolchain_outside_usr_is_shown_read_only(folder: Path, tmp_path: Path) -> None:
    (folder / "bin").mkdir(mode=0o755)
    tool = folder / "bin" / "mytool"
    tool.write_text("#!/bin/sh\necho works; echo x >> $0\n")
    tool.chmod(0o777)  # so that only the mount can refuse
    opened = BubblewrapSandbox(places=1, toolchains=(str(folder),))
    try:
        assert opened.has("mytool")
        finished = opened.run(Program(("mytool",)))
        assert finished.stdout == b"works\n" and b"Read-only" in finished.stderr
    finally:
        opened.close()
    for wrong in (str(tmp_path), "/etc", "/", str(tool)):
        with pytest.raises(UsageError, match="toolchain"):
            BubblewrapSandbox(places=1, toolchains=(wrong,))


def test_the_prefix_of_this_python_can_be_a_toolchain() -> None:
    opened = BubblewrapSandbox(places=1, toolchains=(sys.base_prefix,))
    try:
        code = "import json, sys; print(sys.base_prefix)"
        own = f"{sys.base_prefix}/bin/python3"
        finished = opened.run(Program((own, "-c", code)))
        assert finished.stdout.decode().strip() == os.path.realpath(sys.base_prefix), finished
    finally:
        opened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_works_without_root() -> None:
    python3 = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python3 is None:
        pytest.skip("no python3 that every user may run")
    root = Path(rewards.__file__).parents[1]
    code = f"""
import os, sys
sys.path.insert(0, {str(root)!r})
from rewards.sandbox.bubblewrap import BubblewrapSandbox
from rewards.sandbox import Program
sandbox = BubblewrapSandbox(places=1)
print(os.geteuid(), sandbox.run(Program(("sh", "-c", "exit 137"))).exit_code)
print(sandbox.run(Program(("sh", "-c", "cat /proc/1/environ; ls /"))))
sandbox.close()
"""
    done = subprocess.run(
        [python3, "-c", code],
        user=54321,
        group=54321,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        timeout=60,
    )
    if "Permission denied" in done.stderr and "rewards" in done.stderr:
        pytest.skip("this checkout is not readable for other users")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("54321 137\n")
    assert "Permission denied" in done.stdout  # another process of the same user, yet not readable


# the parts


def test_has_sees_what_a_program_would(sandbox: BubblewrapSandbox) -> None:
    assert sandbox.has("sh") and sandbox.has("python3")
    assert not sandbox.has("no-such-command") and not sandbox.has("/bin/sh")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a//b", "a\0b", "./a"])
def test_a_path_that_leaves_the_folder_is_refused(sandbox: BubblewrapSandbox, path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        sandbox.run(Program(("true",), files={path: b""}))


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    compared = 0
    for machine, header in headers.items():
        if not header.exists():
            continue
        column = seccomp.MACHINES[machine][0]
        found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
        calls = {**seccomp.DENIED, **seccomp.SOCKETS}
        calls |= {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3}
        for name, numbers in calls.items():
            if name in found:
                assert str(numbers[column]) == found[name], (machine, name)
                compared += 1
        assert compared > 50
    if not compared:
        pytest.skip(f"no kernel headers here ({platform.machine()})")


def test_the_filter_is_a_list_of_instructions_that_only_jump_forward_inside() -> None:
    for machine in seccomp.MACHINES:
        program = seccomp.program(machine)
        steps = [program[i : i + 8] for i in range(0, len(program), 8)]
        assert len(program) % 8 == 0 and len(steps) < 4096
        for i, step in enumerate(steps):
            code, if_true, if_false = int.from_bytes(step[:2], "little"), step[2], step[3]
            if code in (0x15, 0x35, 0x45):
                assert i + 1 + max(if_true, if_false) < len(steps)
        assert int.from_bytes(steps[-1][4:], "little") == 0x7FFF0000  # else: allowed


def fake_cgroup2(tmp_path: Path, controllers: str) -> tuple[str, str]:
    root = tmp_path / "cgroup"
    (root / "slice" / "scope").mkdir(parents=True)
    (root / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (root / "slice" / "cgroup.subtree_control").write_text(controllers)
    (root / "slice" / "scope" / "cgroup.subtree_control").write_text("")
    own = tmp_path / "own"
    own.write_text("0::/slice/scope\n")
    return str(root), str(own)


def test_a_version_2_group_goes_below_the_nearest_that_hands_down(tmp_path: Path) -> None:
    root, own = fake_cgroup2(tmp_path, "memory pids\n")
    assert cgroups.make("1-0", root, own) is None  # a real kernel fills the new folder
    made = tmp_path / "cgroup" / "slice" / "rewards-sandbox-1-0"
    made.mkdir(exist_ok=True)
    group = cgroups.Group(str(made), str(made), str(made), version=2)
    group.limit(1 << 20, 10)
    assert (made / "memory.max").read_text() == str((1 << 20) + cgroups.SLACK_BYTES)
    assert (made / "pids.max").read_text() == "13"
    (made / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (made / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert (group.cpu_s(), group.out_of_memory()) == (1.5, 1)


# load


def test_load_says_which_layers_are_active(capfd: pytest.CaptureFixture[str]) -> None:
    opened = rewards.sandbox.load("bubblewrap", places=1)
    opened.close()
    told = capfd.readouterr().err
    assert told.startswith("sandbox bubblewrap: user, pid, mount, network")
    assert "cgroup" in told


def test_load_names_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(options: dict[str, object]) -> rewards.sandbox.Sandbox:
        raise SandboxError("not here")

    monkeypatch.setitem(rewards.sandbox._BACKENDS, "docker", missing)
    monkeypatch.setitem(rewards.sandbox._BACKENDS, "bubblewrap", missing)
    with pytest.raises(UsageError) as caught:
        rewards.sandbox.load("auto")
    text = str(caught.value)
    assert "docker: not here" in text and "bubblewrap: not here" in text
    assert "apt-get install bubblewrap" in text and "posttrain sandbox build" in text


def test_load_refuses_unknown_and_unsafe() -> None:
    with pytest.raises(UsageError, match="Did you mean 'bubblewrap'"):
        rewards.sandbox.load("bublewrap")
    with pytest.raises(UsageError, match="allow_unsafe=True"):
        rewards.sandbox.load("process")
    with pytest.raises(UsageError, match="places"):
        rewards.sandbox.load("auto", places=3)


def test_bwrap_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="install the system's package bubblewrap"):
        BubblewrapSandbox()
