"""The Docker sandbox on a real engine: programs, limits, losses, hosts, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards.errors import UsageError
from rewards.sandbox.docker import DockerSandbox, sweep
from rewards.sandbox.docker_engine import Engine
from rewards.sandbox.docker_owner import OWNER_LABEL, has_ended, ourselves
from rewards.sandbox.image.image import AGENT_LABEL, IMAGE, build
from rewards.sandbox.protocol import MEBIBYTE, Ending, Limits, Program, SandboxError
from tests.rewards.docker_engine import DockerEngine, why_not

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(wall_s=5.0, cpu_s=3.0)


def python(code: str, limits: Limits = QUICK, **more) -> Program:
    return Program(("python3", "-c", code), limits=limits, **more)


def mine(engine: str) -> list[str]:
    """Containers of this process."""
    owned = Engine(engine).owned()
    return [ident for ident, labels in owned if labels[OWNER_LABEL] == ourselves()]


def eventually(condition, within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(holds)


@pytest.fixture
def sandbox(docker_engine):
    """One container, so that a program follows the one before it; may be harmed."""
    with DockerSandbox([docker_engine], containers=1) as one:
        yield one


def container_of(sandbox: DockerSandbox) -> str:
    (place,) = sandbox._pool.places
    return "" if place.container is None else place.container.ident


# programs


def test_a_program_gets_its_input_and_files_and_nothing_else(docker_sandbox):
    code = "import os; print(input()[::-1], sorted(os.listdir('.')), open('a/b.txt').read())"
    done = docker_sandbox.run(
        Program(("python3", "main.py"), {"main.py": code.encode(), "a/b.txt": b"x"}, b"abc\n")
    )
    assert (done.ending, done.exit_code) == (Ending.EXIT, 0)
    assert (done.stdout, done.stderr) == (b"cba ['a', 'main.py'] x\n", b"")
    assert done.ok and 0 < done.wall_s < 5


def test_how_programs_end(docker_sandbox):
    def ends(*argv, **more):
        done = docker_sandbox.run(Program(argv, limits=Limits(1.0, 1.0), **more))
        return done.ending, done.exit_code, done.signal, done.stdout, done.stderr

    assert ends("bash", "-c", "echo no >&2; exit 3") == ("exit", 3, None, b"", b"no\n")
    assert ends("bash", "-c", "echo a; kill -TERM $$") == ("signal", None, 15, b"a\n", b"")
    assert ends("cat", stdin=b"\0\r\n\xff" * 50_000)[3] == b"\0\r\n\xff" * 50_000
    assert ends("true", stdin=bytes(10 * MEBIBYTE))[:2] == ("exit", 0)
    missing = ends("no-such-command")
    assert missing == ("exit", 127, None, b"", b"no-such-command: No such file or directory\n")


@pytest.mark.parametrize(
    ("code", "limits", "ending"),
    [
        ("import time; time.sleep(60)", Limits(wall_s=0.5), Ending.WALL),
        ("while True: pass", Limits(wall_s=20, cpu_s=0.5), Ending.CPU),
        ("import os\nwhile True:\n if not os.fork(): sum(range(10**6)); os._exit(0)\n os.wait()",
         Limits(wall_s=20, cpu_s=0.5), Ending.CPU),
        ("x = bytes(range(256)) * (1 << 24)", QUICK, Ending.MEMORY),
        ("x = []\nwhile True: x.append(bytes(range(256)) * 4096)",
         Limits(memory_bytes=100 * MEBIBYTE), Ending.MEMORY),
        ("while True: print('x' * 1000)", Limits(output_bytes=5000), Ending.OUTPUT),
        ("import os\nwhile True: os.write(2, b'x' * 1000)", QUICK, Ending.OUTPUT),
    ],
    ids=["sleeps", "spins", "children spin", "huge", "grows", "floods", "floods stderr"],
)  # fmt: skip
def test_limits_are_named(docker_sandbox, code, limits, ending):
    done = docker_sandbox.run(python(code, limits))
    assert (done.ending, done.exit_code, done.signal) == (ending, None, None), done
    assert max(len(done.stdout), len(done.stderr)) <= limits.output_bytes
    assert docker_sandbox.run(python("print(1)")).stdout == b"1\n"


def test_limits_of_one_program_can_be_smaller_than_the_containers(sandbox):
    files = python(
        "import os\nfor i in range(10**4): os.mkdir(str(i))",
        Limits(files=100),
    )
    disk = python("open('x', 'wb').write(bytes(3 << 20))", Limits(disk_bytes=2 * MEBIBYTE))
    many = python(
        "open('x', 'wb').write(bytes(1 << 20)); open('y', 'wb').write(bytes(3 << 19))",
        Limits(disk_bytes=2 * MEBIBYTE),
    )
    threads = python(
        "import threading, time\nn = 0\ntry:\n while True:\n"
        "  threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print(n, flush=True)",
        Limits(processes=10),
    )
    for _ in range(2):
        assert b"'100'" in sandbox.run(files).stderr  # the 101st
        assert b"File too large" in sandbox.run(disk).stderr
        assert b"No space left" in sandbox.run(many).stderr
        assert sandbox.run(threads).stdout == b"9\n"
        assert sandbox.run(python("open('x', 'wb').write(bytes(60 << 20)); print(2)")).ok


def test_what_cannot_be_run_is_said_before(docker_sandbox):
    for program, what in [
        (Program(()), "argv"),
        (Program(("a\0b",)), "NUL"),
        (Program(("true",), {"../x": b""}), "below"),
        (Program(("true",), {"/x": b""}), "below"),
        (Program(("true",), limits=Limits(memory_bytes=1 << 40)), "limits=Limits"),
        (Program(("true",), {"x": bytes(100)}, limits=Limits(disk_bytes=99)), "disk_bytes"),
    ]:
        with pytest.raises(UsageError, match=what):
            docker_sandbox.run(program)
    with pytest.raises(SandboxError, match="files"):
        docker_sandbox.run(Program(("true",), {"x": b"", "x/y": b""}))


def test_it_knows_what_the_image_has(docker_sandbox):
    assert [docker_sandbox.has(one) for one in ("python3", "bash", "g++")] == [True, True, False]


def test_threads_share_the_containers(docker_sandbox):
    def square(i):
        return int(docker_sandbox.run(python(f"print({i} * {i})")).stdout)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(square, range(24))) == [i * i for i in range(24)]


def test_who_waits_first_is_served_first(sandbox):
    """One container, and two threads that take it again and again."""
    waited = []

    def many():
        for _ in range(40):
            start = time.monotonic()
            sandbox.run(python("pass"))
            waited.append(time.monotonic() - start)

    with ThreadPoolExecutor(3) as threads:
        for one in [threads.submit(many) for _ in range(3)]:
            one.result()
    assert max(waited) < 20 * sorted(waited)[len(waited) // 2]


# isolation


def test_the_engine_confirms_every_layer(docker_engine, sandbox):
    config = Engine(docker_engine)._client.inspect_container(container_of(sandbox))
    host = config["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"]) == ("none", True)
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["SecurityOpt"] == ["no-new-privileges"]  # and the default seccomp profile
    assert host["Memory"] == host["MemorySwap"] == (1024 + 192 + 4 + 32) * MEBIBYTE
    assert (host["PidsLimit"], host["NanoCpus"]) == (132, 10**9)
    assert set(host["Tmpfs"]) == {"/tmp", "/dev/shm"}
    assert (host["Binds"], config["Mounts"]) == (None, [])
    assert int(config["Config"]["User"].split(":")[0]) >= 20_000
    assert {"no network", "read-only root", "no capabilities"} <= set(sandbox.layers)


TOUCH_THE_AGENT = """
import os, resource, signal
attempts = {
    "memory": lambda: open("/proc/1/mem", "rb"),
    "pipes": lambda: os.listdir("/proc/1/fd"),
    "environment": lambda: open("/proc/1/environ").read(),
    "maps": lambda: open("/proc/1/maps").read(),
    "oom": lambda: open("/proc/1/oom_score_adj", "w").write("1000"),
    "limits": lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    "priority of the user": lambda: os.setpriority(os.PRIO_USER, 0, 19),
    "cpus": lambda: os.sched_setaffinity(1, {0}),
    "scheduler": lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print("done:", name)
    except OSError:
        pass
for number in signal.valid_signals():
    os.kill(1, number)
print(len(attempts))
"""


def test_a_program_cannot_reach_the_agent(sandbox):
    before = container_of(sandbox)
    done = sandbox.run(python(TOUCH_THE_AGENT))
    assert (done.stdout, done.stderr, done.ok) == (b"10\n", b"", True)
    assert sandbox.run(python("print(1)")).stdout == b"1\n"
    assert container_of(sandbox) == before != ""


LEAVE_THINGS = """
import os, sys
os.makedirs("a/b"); open("a/b/c", "w").write("x"); os.chmod("a/b", 0); os.chmod("a", 0)
open("/tmp/x", "w"); open("/tmp/.hidden", "w"); os.symlink("/etc", "/tmp/link")
os.mkfifo("/tmp/fifo"); open("/dev/shm/y", "w"); open(b"/tmp/\\xff\\n", "w")
here = os.getcwd()
for i in range(1500): os.mkdir("d"); os.chdir("d")
if os.fork() == 0:
    os.setsid()
    for i in (0, 1, 2): os.close(i)
    if os.fork() == 0:
        import time; time.sleep(60)
    os._exit(0)
os.chmod(here, 0)
"""
LOOK = """
import os
print(sorted(os.listdir(".") + os.listdir("/tmp") + os.listdir("/dev/shm")))
print([int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())])
print(oct(os.stat(".").st_mode), oct(os.stat("/tmp").st_mode))
"""


def test_nothing_of_a_program_is_there_for_the_next(sandbox):
    before = container_of(sandbox)
    assert sandbox.run(python(LEAVE_THINGS)).stderr == b""
    expected = b"['work']\n[]\n0o40755 0o41777\n"
    assert sandbox.run(python(LOOK)).stdout == expected
    assert container_of(sandbox) == before


# losses


def test_a_container_lost_by_chance_costs_nothing(docker_engine, sandbox):
    first = container_of(sandbox)
    killer = threading.Timer(0.7, lambda: Engine(docker_engine).remove(first))
    killer.start()
    done = sandbox.run(python("import time; time.sleep(4); print('again')"))
    killer.join()
    assert done.stdout == b"again\n"
    assert container_of(sandbox) not in ("", first)


def test_containers_that_ended_while_idle_are_replaced(docker_engine):
    with DockerSandbox([docker_engine], containers=3) as sandbox:
        for place in sandbox._pool.places:
            Engine(docker_engine).remove(place.container.ident)
        assert sandbox.run(python("print(1)")).stdout == b"1\n"


def test_a_program_that_ends_its_container_twice_is_to_blame(docker_engine, sandbox):
    engine, over = Engine(docker_engine), threading.Event()

    def kill_whatever_runs():
        while not over.is_set():
            time.sleep(1.0)
            for ident in mine(docker_engine):
                if ident == container_of(sandbox):
                    engine.remove(ident)

    killer = threading.Thread(target=kill_whatever_runs)
    killer.start()
    try:
        done = sandbox.run(python("import time; time.sleep(4)"))
    finally:
        over.set()
        killer.join()
    assert (done.ending, done.signal) == (Ending.SIGNAL, signal.SIGKILL)
    assert sandbox.run(python("print(1)")).stdout == b"1\n"


def test_a_container_that_does_not_answer_is_replaced(docker_engine, monkeypatch):
    monkeypatch.setattr("rewards.sandbox.docker_container.GRACE_S", 0.5)
    with DockerSandbox([docker_engine], containers=1) as sandbox:
        first = container_of(sandbox)
        Engine(docker_engine)._client.pause(first)
        start = time.monotonic()
        done = sandbox.run(python("print(1)", Limits(wall_s=0.5)))
        assert (done.ending, done.stdout) == (Ending.WALL, b"")
        assert time.monotonic() - start < 15
        assert sandbox.run(python("print(1)")).stdout == b"1\n"
        assert first not in mine(docker_engine)


# several hosts


def test_hosts_that_do_not_answer(docker_engine):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    with (
        pytest.warns(UserWarning, match=f"left out .*{nobody}"),
        DockerSandbox([nobody, docker_engine], containers=1) as sandbox,
    ):
        assert sandbox.run(python("print(1)")).stdout == b"1\n"
    with pytest.raises(SandboxError, match=f"no Docker host can be used.*{nobody}"):
        DockerSandbox([nobody, "unix:///nowhere/docker.sock"])
    assert nobody in str(DockerSandbox.available([nobody]))
    assert DockerSandbox.available([nobody, docker_engine]) is None
    with pytest.raises(UsageError, match="put it in brackets"):
        DockerSandbox(docker_engine)


@pytest.fixture(scope="module")
def second_engine(docker_engine):
    """Over TCP, with the same image."""
    if os.environ.get("POSTTRAIN_TEST_DOCKER_HOST") and why_not() is not None:
        pytest.skip(str(why_not()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    engine = DockerEngine(url)
    try:
        client = Engine(docker_engine)._client
        list(Engine(url)._client.load_image(client.get_image(IMAGE)))  # to its end
        yield engine
    finally:
        engine.stop()


def test_two_hosts_share_the_work_and_one_may_die(docker_engine, second_engine):
    """Nothing is lost but time when a host goes in the middle of its programs."""
    hosts = [docker_engine, second_engine.url]
    with DockerSandbox(hosts, containers=2) as sandbox, ThreadPoolExecutor(4) as threads:
        assert len(mine(second_engine.url)) == 2
        code = "import sys, time; time.sleep(0.6); print(sys.argv[1])"
        programs = [Program(("python3", "-c", code, str(i)), limits=QUICK) for i in range(12)]
        running = [threads.submit(sandbox.run, one) for one in programs]
        time.sleep(0.3)
        second_engine.crash()
        outputs = [one.result(timeout=60).stdout for one in running]
        assert outputs == [f"{i}\n".encode() for i in range(12)]
        assert {p.host.url for p in sandbox._pool.places if p.container} == {docker_engine}
        second_engine.start()
        sandbox._pool.places[-1].host.down_until = 0.0  # half a minute later
        assert [one.stdout for one in threads.map(sandbox.run, programs)] == outputs
        assert len(mine(second_engine.url)) >= 1


def test_no_host_left_is_an_error_and_no_wait(docker_engine, second_engine):
    with DockerSandbox([second_engine.url], containers=1) as sandbox:
        assert sandbox.run(python("print(1)")).stdout == b"1\n"
        second_engine.crash()
        with pytest.raises(SandboxError, match=f"no Docker host works: {second_engine.url}"):
            sandbox.run(python("print(1)"))


def test_an_image_that_is_missing_or_old_names_the_command(docker_engine):
    why = DockerSandbox.available([docker_engine], image="no-such-image")
    assert "no image 'no-such-image'" in str(why) and "posttrain sandbox build" in str(why)
    client = Engine(docker_engine)._client
    other = client.create_container(IMAGE, ["true"], labels={})["Id"]
    try:
        client.commit(other, "old-sandbox", changes=f"LABEL {AGENT_LABEL}=before")
    finally:
        client.remove_container(other)
    assert "is not of this version" in str(
        DockerSandbox.available([docker_engine], image="old-sandbox")
    )
    with pytest.raises(SandboxError, match="posttrain sandbox build"):
        DockerSandbox([docker_engine], image="old-sandbox")


def test_the_dockerfile_makes_the_same_image(docker_engine):
    """From a base that the engine has, since no registry may be in reach."""
    name = build([docker_engine], ("python",), packages=["bash"], method="dockerfile", base=IMAGE)
    assert build([docker_engine], ("python",), packages=["bash"], method="dockerfile") == name
    with DockerSandbox([docker_engine], image=name, containers=1) as sandbox:
        done = sandbox.run(Program(("find", "/usr", "-perm", "/6000")))
        assert (done.ok, done.stdout) == (True, b"")
    with pytest.raises(UsageError, match="Did you mean 'python'"):
        build([docker_engine], ("pyton",))


# what is left behind


def test_nothing_is_left_of_many_runs(docker_engine, sandbox):
    def held():
        client = Engine(docker_engine)._client
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(mine(docker_engine)),
            len(client.containers(all=True)),
        )

    program = python("print(1)")
    assert sandbox.run(program).ok
    before, first = held(), container_of(sandbox)
    assert [sandbox.run(program).stdout for _ in range(200)] == [b"1\n"] * 200
    assert (held(), container_of(sandbox)) == (before, first)


def test_close_ends_all_and_can_be_called_again(docker_engine):
    before = sorted(mine(docker_engine))
    sandbox = DockerSandbox([docker_engine], containers=3)
    assert len(mine(docker_engine)) == len(before) + 3
    sandbox.close()
    sandbox.close()
    assert sorted(mine(docker_engine)) == before
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(python("print(1)"))


def test_close_ends_a_run_in_another_thread(docker_engine):
    sandbox = DockerSandbox([docker_engine], containers=1)
    failures = []

    def run():
        try:
            sandbox.run(python("import time; time.sleep(60)", Limits(wall_s=60)))
        except SandboxError as error:
            failures.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    sandbox.close()
    thread.join(20)
    assert failures == ["the sandbox is closed"]


OWNER = """
import sys, time
from rewards.sandbox.docker import DockerSandbox
from rewards.sandbox.docker_owner import ourselves
from rewards.sandbox.protocol import Limits, Program
sandbox = DockerSandbox([sys.argv[1]], containers=1)
print(ourselves(), flush=True)
sandbox.run(Program(("sleep", "100"), limits=Limits(wall_s=100)))
"""


def test_a_killed_owner_leaves_no_container(docker_engine):
    """Not even one in which a program runs."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, docker_engine], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    name = owner.stdout.readline().strip()

    def its_own():
        return [one for one, labels in Engine(docker_engine).owned() if labels[OWNER_LABEL] == name]

    assert len(its_own()) == 1 and not has_ended(name)
    time.sleep(0.5)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert eventually(lambda: its_own() == []), its_own()


def test_a_later_start_removes_what_a_dead_owner_left(docker_engine):
    client = Engine(docker_engine)._client
    here, _, start = ourselves().rpartition("/")
    owners = {
        "dead": f"{here}/{int(start) + 1}",  # our id, of a process that started at another time
        "alive": ourselves(),
        "elsewhere": "another-boot/4026531836/1/1",
    }
    left = {
        name: client.create_container(IMAGE, ["true"], labels={OWNER_LABEL: owner})["Id"]
        for name, owner in owners.items()
    }
    try:
        assert sweep(Engine(docker_engine)) == 1
        there = {ident for ident, _ in Engine(docker_engine).owned()}
        assert {name for name, ident in left.items() if ident in there} == {"alive", "elsewhere"}
    finally:
        for ident in left.values():
            Engine(docker_engine).remove(ident)


def test_a_fork_neither_uses_nor_ends_it(sandbox):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sandbox.close()
            sandbox.run(python("print(1)"))
        except SandboxError as error:
            code = 7 if "fork" in str(error) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert sandbox.run(python("print(1)")).stdout == b"1\n"


def test_a_host_that_is_not_there_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.cli import main

    assert main(["sandbox", "build", "--host", f"unix://{tmp_path}/none.sock"]) == 2
    assert f"nothing was built: Docker at unix://{tmp_path}/none.sock" in capsys.readouterr().err
