"""The backend without isolation: endings, limits and cleaning up, as far as a process can."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewards.sandbox
from rewards.sandbox import Ending, Limits, Program
from rewards.sandbox.process import ProcessSandbox

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")

USUAL = Limits(wall_s=40.0, cpu_s=10.0)


@pytest.fixture(scope="module", params=[True, False], ids=["cgroup", "looking"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[ProcessSandbox]:
    opened = ProcessSandbox(places=1, control_group=request.param)
    yield opened
    opened.close()


def test_what_a_program_writes_comes_back(sandbox: ProcessSandbox) -> None:
    program = Program(("sh", "-c", "cat; cat a/b; exit 3"), files={"a/b": b"\xff"}, stdin=b"in\n")
    finished = sandbox.run(program)
    assert (finished.stdout, finished.exit_code) == (b"in\n\xff", 3)
    killed = sandbox.run(Program(("sh", "-c", "kill -9 $$")))
    assert (killed.ending, killed.signal) == (Ending.SIGNAL, signal.SIGKILL)
    assert sandbox.run(Program(("sh", "-c", "exit 137"))).exit_code == 137


@pytest.mark.parametrize(
    ("code", "limits", "ending"),
    [
        ("import time; time.sleep(60)", Limits(wall_s=0.5), Ending.WALL),
        ("import os; os.fork()\nwhile True: pass", Limits(wall_s=40, cpu_s=0.5), Ending.CPU),
        ("while True: print('x' * 1000)", USUAL, Ending.OUTPUT),
    ],
    ids=["sleep", "loops", "stdout"],
)
def test_a_limit_ends_the_program(
    sandbox: ProcessSandbox, code: str, limits: Limits, ending: Ending
) -> None:
    finished = sandbox.run(Program(("python3", "-c", code), limits=limits))
    assert finished.ending is ending, finished


def test_memory_and_processes_are_limited(sandbox: ProcessSandbox) -> None:
    limits = Limits(wall_s=40, memory_bytes=128 << 20, processes=10)
    big = sandbox.run(Program(("python3", "-c", "b'x' * (1 << 29)"), limits=limits))
    assert not big.ok and (big.ending is Ending.MEMORY or b"MemoryError" in big.stderr)
    # The parent stays a moment: where only looking finds them, that takes 20 ms and more.
    bomb = "import os, time\nfor _ in range(30): os.fork() or time.sleep(9)\ntime.sleep(2)"
    start = time.monotonic()
    assert not sandbox.run(Program(("python3", "-c", bomb), limits=limits)).ok
    assert time.monotonic() - start < 30
    assert sandbox.run(Program(("true",))).ok


def test_a_daemon_ends_with_its_program(sandbox: ProcessSandbox) -> None:
    mark = f"700.{time.monotonic_ns() % 10**9}"
    code = f"""
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{mark}"])
    os._exit(0)
import time; time.sleep(0.3)
"""
    assert sandbox.run(Program(("python3", "-c", code), limits=USUAL)).ok
    seen = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert mark not in seen.stdout


def test_the_environment_and_the_folder_are_its_own(
    sandbox: ProcessSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    first = sandbox.run(Program(("sh", "-c", "env; pwd; touch left; ls -A")))
    assert b"hunter2" not in first.stdout and first.stdout.endswith(b"left\n")
    second = sandbox.run(Program(("ls", "-A")))
    assert second.stdout == b""


def test_close_leaves_nothing_behind() -> None:
    opened = ProcessSandbox(places=1)
    folder = opened.run(Program(("pwd",))).stdout.decode().strip()
    assert os.path.basename(folder).startswith("rewards-sandbox-")
    opened.close()
    assert not os.path.exists(folder)


def test_it_says_that_it_does_not_isolate(capfd: pytest.CaptureFixture[str]) -> None:
    opened = rewards.sandbox.load("process", allow_unsafe=True, places=1)
    assert opened.has("sh") and not opened.has("no-such-command")
    opened.close()
    assert "NO ISOLATION" in capfd.readouterr().err
