"""Sessions in both sandboxes, for real: what lasts, what a time-out costs, that all is gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

import rewards.sandbox
from rewards import UsageError
from rewards.sandbox import (
    Ending,
    Limits,
    Sandbox,
    SandboxError,
    Session,
    SessionLimits,
    SessionOver,
)
from rewards.sandbox.bubblewrap import BubblewrapSandbox
from rewards.sandbox.session import OpenSession
from rewards.sandbox.usage import descendants

QUICK = SessionLimits(call_s=3.0, output_bytes=1000)


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def sandbox(request) -> Sandbox:
    return request.getfixturevalue(f"{request.param}_sandbox")


@pytest.fixture(scope="module")
def shared(sandbox: Sandbox) -> Iterator[Session]:
    """For what leaves the session usable."""
    session = sandbox.session({"data/a.txt": b"hello"}, SessionLimits(output_bytes=1000))
    yield session
    session.close()


def text(said) -> str:
    assert said.ok, said
    return said.output.decode()


def test_an_interpreter_keeps_its_variables(shared: Session) -> None:
    assert text(shared.python("x = 3\nprint('a')\nx + 1")) == "a\n4\n"
    assert text(shared.python("open('data/a.txt').read() * x")) == "'hellohellohello'\n"
    failed = shared.python("def f():\n  return 1 / 0\nf()")
    assert (failed.exit_code, failed.ending, failed.state_lost) == (1, Ending.EXIT, False)
    told = failed.output.decode()
    assert "return 1/0" in told.replace(" / ", "/")
    assert "ZeroDivisionError" in told
    assert "session" not in told  # nothing of ours is in the traceback
    assert "SyntaxError" in shared.python("1 +").output.decode()
    assert text(shared.python("x")) == "3\n"


def test_a_shell_keeps_its_folder_and_variables(shared: Session) -> None:
    assert text(shared.shell("cd data; export Q=5; f() { echo $Q; }; ls")) == "a.txt\n"
    assert text(shared.shell("f; basename $PWD; cat; echo 'it''s'; echo err >&2")) == (
        "5\ndata\nits\nerr\n"
    )
    assert shared.shell("false").exit_code == 1
    assert shared.shell("if").exit_code == 2  # no syntax
    assert text(shared.shell("sleep 60 & echo at once")) == "at once\n"


def test_files_of_a_session(shared: Session) -> None:
    shared.write("new/b.bin", b"\x00\xff")
    assert text(shared.python("open('new/b.bin', 'rb').read()")) == "b'\\x00\\xff'\n"
    shared.shell("ln -s /etc/passwd ~/link; mkfifo ~/pipe")
    assert shared.read("new/b.bin") == b"\x00\xff"
    assert shared.files() == {"data/a.txt": b"hello", "new/b.bin": b"\x00\xff"}
    with pytest.raises(OSError, match="FileNotFoundError"):
        shared.read("none")
    with pytest.raises(OSError, match="is no file"):
        shared.read("pipe")


def test_output_beyond_the_limit_is_left_out_and_costs_nothing(shared: Session) -> None:
    said = shared.python("kept = 1\nprint('y' * 100_000)")
    assert (said.output, said.dropped, said.ok) == (b"y" * 1000, 99_001, True)
    assert text(shared.python("kept")) == "1\n"


def test_a_call_out_of_time_is_killed_and_costs_the_state_but_no_files(sandbox: Sandbox) -> None:
    session = sandbox.session(limits=QUICK)
    session.python("x = 1; open('f', 'w').write('there')")
    started = time.monotonic()
    said = session.shell("echo begun; (setsid sleep 600 &); sleep 600")
    assert time.monotonic() - started < 20
    assert (said.output, said.ending, said.exit_code) == (b"begun\n", Ending.WALL, None)
    assert said.state_lost
    assert session.read("f") == b"there"
    after = session.python("'x' in globals(), open('f').read()")
    assert after.output == b"(False, 'there')\n"
    assert "sleep" not in text(session.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; true"))
    session.close()
    session.close()
    with pytest.raises(SandboxError, match="closed"):
        session.python("1")


def test_a_worker_that_ends_by_itself_is_started_anew(sandbox: Sandbox) -> None:
    session = sandbox.session(limits=QUICK)
    ended = session.python("exit(3)")
    assert (ended.exit_code, ended.ending, ended.state_lost) == (3, Ending.EXIT, True)
    killed = session.shell("kill -9 $$")
    assert (killed.exit_code, killed.ending, killed.state_lost) == (None, Ending.SIGNAL, True)
    assert text(session.python("2")) == "2\n"
    session.close()


ATTACKS = {
    "kills": "import os, signal\nos.kill(-1, 9)",
    "spins": "while True: pass",
    "grows": "x = b'a' * (1 << 30)",
    "answers": "import os\nfor i in os.listdir('/proc'):\n  try: os.kill(int(i), 9)\n"
    "  except (ValueError, OSError): pass",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_runs_inside_ends_its_own_session_and_no_other(sandbox: Sandbox, attack: str) -> None:
    limits = SessionLimits(Limits(wall_s=60, cpu_s=1.0, memory_bytes=200 << 20), call_s=20.0)
    session = sandbox.session(limits=limits)
    with pytest.raises(SessionOver) as over:
        attacked(session, ATTACKS[attack])
    expected = {"spins": Ending.CPU, "grows": Ending.MEMORY}.get(attack, Ending.SIGNAL)
    assert over.value.ending is expected
    with pytest.raises(SessionOver):
        session.read("f")
    session.close()
    fresh = sandbox.session(limits=limits)
    assert text(fresh.python("import os; os.listdir('.')")) == "[]\n"
    fresh.close()


def attacked(session: Session, code: str) -> None:
    session.python(code)
    until = time.monotonic() + 10
    while time.monotonic() < until:  # the kernel may have taken the interpreter alone, just before
        session.python("1")
        time.sleep(0.1)


@pytest.mark.parametrize(
    "paths", [["../x"], ["a", "a/b"], ["a" * 300], ["a/" * 1500 + "b"], ["\ud800"], ["a//b"]]
)
def test_files_that_no_sandbox_could_have_are_not_believed(paths: list[str]) -> None:
    class Forged:
        def exchange(self, request: bytes, timeout_s: float) -> bytes:
            return json.dumps({"files": dict.fromkeys(paths, "")}).encode()

        def close(self) -> None:
            pass

    with pytest.raises(SessionOver):
        OpenSession(Forged(), SessionLimits()).files()


def test_nothing_is_left_after_close(bubblewrap_sandbox: Sandbox) -> None:
    import os

    before = set(descendants(os.getpid()))
    session = bubblewrap_sandbox.session({"f": b""})
    session.shell("(setsid sleep 600 &); sleep 600 &")
    during = set(descendants(os.getpid())) - before
    assert len(during) >= 5
    session.close()
    assert not set(descendants(os.getpid())) & during


def test_close_wakes_one_who_waits(sandbox: Sandbox) -> None:
    session = sandbox.session(limits=SessionLimits(call_s=60.0))
    seen: list[BaseException] = []

    def call() -> None:
        try:
            session.shell("sleep 60")
        except (SessionOver, SandboxError) as error:
            seen.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    session.close()
    thread.join(15.0)
    assert not thread.is_alive()
    assert len(seen) == 1


def test_files_that_do_not_fit_are_told_at_once(sandbox: Sandbox) -> None:
    started = time.monotonic()
    limits = SessionLimits(whole=Limits(files=3))
    with pytest.raises(SandboxError, match="No space left"):
        sandbox.session({"a/b/c/d/e/f/g/h/i": b""}, limits).python("1")
    assert time.monotonic() - started < 20


def test_what_cannot_be_opened() -> None:
    if why := BubblewrapSandbox.available():
        pytest.skip(why)
    box = BubblewrapSandbox(places=1, sessions=1)
    with pytest.raises(ValueError, match="plain relative path"):
        box.session({"../f": b""})
    with pytest.raises(UsageError, match="limits must be positive"):
        box.session(limits=SessionLimits(call_s=0))
    only = box.session()
    with pytest.raises(SandboxError, match="1 sessions are open"):
        box.session()
    box.close()
    with pytest.raises(SandboxError, match="closed"):
        only.shell("true")
    plain = rewards.sandbox.load("process", allow_unsafe=True, places=1)
    with pytest.raises(UsageError, match="no sessions"):
        plain.session()
    plain.close()
