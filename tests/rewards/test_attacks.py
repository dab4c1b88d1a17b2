"""Hostile programs against the sandboxes: contained, reported right, harmless to the next run.

All attacks of a backend run once, several at a time, each followed by the canary; the tests then
look at what became of each. Everything about the host is looked at from the host.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards.sandbox.protocol import Ending, Finished, Limits, Program, Sandbox, SandboxError
from tests.rewards.attack_host import (
    Host,
    attacked_host,
    processes_below,
    processes_with,
    several_at_a_time,
)
from tests.rewards.attack_programs import files, kernel, network, processes, resources, texts
from tests.rewards.attacks import CANARY, CANARY_STDIN, Attack, canary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ATTACKS = (
    *resources.ATTACKS,
    *processes.ATTACKS,
    *files.ATTACKS,
    *kernel.ATTACKS,
    *network.ATTACKS,
    *texts.ATTACKS,
)
LATE_S = 15.0  # what a busy machine may add to a deadline
BATTLE_S = 150.0
RUNS = 150
# Over at once, and each leaves something else to clean up.
QUICK_ATTACKS = (
    "daemon_that_holds_the_pipes",
    "daemon_without_descriptors",
    "deeper_than_a_path_can_be",
    "kills_everything",
    "killed_by_own_sigkill",
    "leaves_ipc_behind",
    "memory_bomb_in_one_object",
    "names_that_are_not_text",
    "own_folder_without_permissions",
    "output_flood",
    "stdin_closed_at_once",
)


@dataclass
class Ran:
    """What one attack did, and the canary after it."""

    finished: Finished | None = None
    error: str = "did not end"
    survivors: list[str] | None = None
    canary: Finished | None = None
    canary_error: str = "did not run"


@dataclass
class Battle:
    sandbox: Sandbox
    host: Host
    before: dict[str, object]  # what the canary said before the first attack
    ran: dict[str, Ran]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with attacked_host() as one:
        yield one


@pytest.fixture(scope="session", params=["bubblewrap", "docker"])
def battle(request: pytest.FixtureRequest, host: Host) -> Battle:
    sandbox = request.getfixturevalue(f"{request.param}_sandbox")
    before = json.loads(sandbox.run(canary()).stdout)
    ran = {attack.name: Ran() for attack in ATTACKS}
    # The longest first, so that nobody waits for them at the end.
    several_at_a_time(
        lambda attack: attack_once(sandbox, host, attack, ran[attack.name]),
        sorted(ATTACKS, key=lambda one: one.ok is not False),
        BATTLE_S,
    )
    return Battle(sandbox, host, before, ran)


def attack_once(sandbox: Sandbox, host: Host, attack: Attack, into: Ran) -> None:
    try:
        into.finished = sandbox.run(attack.program(host.facts(attack.name)))
    except Exception as error:  # noqa: BLE001  what it is decides nothing: none is right
        into.error = repr(error)
    into.survivors = processes_with(host.mark_of(attack.name))
    try:
        into.canary = sandbox.run(canary())
    except Exception as error:  # noqa: BLE001
        into.canary_error = repr(error)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(battle: Battle, attack: Attack) -> None:
    ran = battle.ran[attack.name]
    finished = ran.finished
    if finished is None:
        pytest.fail(f"the sandbox gave no result: {ran.error}")
    shown, limits = finished.stdout + finished.stderr, attack.limits
    how = f"{finished.ending} {finished.exit_code} {finished.signal}"
    story = f"{attack.means}; {how}: {shown[-3000:]!r}"
    assert b"ESCAPED" not in shown, story
    assert battle.host.secret.encode() not in shown, story
    assert ran.survivors == []
    assert finished.ending in attack.ends, story
    assert attack.ok is None or finished.ok is attack.ok, story
    if finished.ending is Ending.EXIT and attack.attempts:
        assert shown.count(b"blocked ") >= attack.attempts, f"an attempt was not made: {story}"
    if attack.code is not None:
        assert attack.code in (finished.exit_code, finished.signal), story
    if attack.shows is not None:
        assert finished.stdout == attack.shows, story
    assert max(len(finished.stdout), len(finished.stderr)) <= limits.output_bytes
    assert finished.wall_s < (attack.within_s or limits.wall_s + LATE_S), story
    check_canary(battle, ran)


def holdings(host: Host) -> dict[str, int]:
    """What this process and the machine hold on behalf of the sandboxes."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    tree = processes_below(os.getpid())
    return {
        "memory": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(tree),
        "temporary": sum("sandbox" in name for name in os.listdir(tempfile.gettempdir())),
        "marked": len(processes_with(host.mark)),
    }


def check_canary(battle: Battle, ran: Ran) -> None:
    assert ran.canary is not None, f"the run after it failed: {ran.canary_error}"
    assert ran.canary.ok, ran.canary
    now = json.loads(ran.canary.stdout)
    changed = {key: (battle.before.get(key), now.get(key)) for key in battle.before | now}
    assert {key: both for key, both in changed.items() if both[0] != both[1]} == {}
    assert ran.canary.wall_s < 10.0, ran.canary.wall_s


def test_the_canary_saw_what_it_should(battle: Battle) -> None:
    before = battle.before
    assert before["digest"] == hashlib.sha256(CANARY_STDIN).hexdigest()
    assert before["main"] == hashlib.sha256(CANARY.encode()).hexdigest()
    assert before["cwd"] == ["main.py"]
    assert before["fds"] == ["0", "1", "2"]
    assert before["root"] is False


def test_names_of_attacks_are_unique() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))


def test_the_host_is_as_it_was(battle: Battle) -> None:
    host = battle.host
    assert host.visits == []
    assert host.victim.poll() is None
    assert host.secret_file.read_text() == host.secret
    assert sorted(os.listdir(host.witness)) == host.entries
    assert host.marked_files() == []
    assert processes_with(host.mark) == []
    assert not [*Path(".").glob("core"), *Path(".").glob("core.[0-9]*")]
    for name in ("shm", "msg", "sem"):
        keys = [line.split()[0] for line in Path(f"/proc/sysvipc/{name}").read_text().splitlines()]
        assert str(0x77AA) not in keys


MEETING = """
import os, socket, sys, time
me, other, mark = sys.argv[1:4]
found = []
held = []
def listen(family, address):
    one = socket.socket(family)
    one.bind(address)
    one.listen()
    held.append(one)
def reach(family, address):
    with socket.socket(family) as one:
        one.connect(address)
        found.append(repr(address))
def quietly(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        pass
ports = {"a": 45871, "b": 45872}
folders = ("/tmp", "/dev/shm", "/var/tmp", "/run", "/", "..", os.path.expanduser("~"))
quietly(listen, socket.AF_UNIX, "\\0" + mark + me)
quietly(listen, socket.AF_INET, ("127.0.0.1", ports[me]))
for folder in folders:
    quietly(lambda: open(f"{folder}/{mark}{me}", "w").close())
end = time.time() + 1.5
while time.time() < end:
    quietly(reach, socket.AF_UNIX, "\\0" + mark + other)
    quietly(reach, socket.AF_INET, ("127.0.0.1", ports[other]))
    found += [folder for folder in folders if os.path.exists(f"{folder}/{mark}{other}")]
    time.sleep(0.05)
for one in os.listdir("/proc"):
    if one.isdigit() and int(one) != os.getpid():
        found += [one] if mark in open(f"/proc/{one}/cmdline").read() else []
print(sorted(set(found)))
"""


def test_programs_at_the_same_time_do_not_meet(battle: Battle) -> None:
    said: dict[str, bytes] = {}

    def run(me: str, other: str) -> None:
        argv = ("python3", "main.py", me, other, battle.host.mark)
        limits = Limits(wall_s=8.0)
        said[me] = battle.sandbox.run(
            Program(argv, {"main.py": MEETING.encode()}, limits=limits)
        ).stdout

    both = [threading.Thread(target=run, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert said == {"a": b"[]\n", "b": b"[]\n"}


HOSTILE_PATHS = ("../out", "/tmp/out", "a/../../out", "", ".", "..", "a/", "nul\0", "a//../../out")


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_program_cannot_be_laid_out_elsewhere(battle: Battle, path: str) -> None:
    name = path.replace("out", battle.host.mark)
    program = Program(("cat", "main.py"), {name: b"x", "main.py": b"fine"})
    try:
        finished = battle.sandbox.run(program)
    except (ValueError, SandboxError):  # UsageError is a ValueError
        pass
    else:
        assert finished.stdout == b"fine", finished
    assert battle.host.marked_files() == []
    assert battle.sandbox.run(canary()).ok


def test_many_runs_leave_nothing(battle: Battle) -> None:
    """Attacks and ordinary programs in turn: no process, descriptor, file, mount or memory."""
    names = (*QUICK_ATTACKS, "", "", "")
    by_name = {attack.name: attack for attack in ATTACKS}
    failed: list[str] = []
    done: list[str] = []

    def run(name: str) -> None:
        program = by_name[name].program(battle.host.facts("many")) if name else canary()
        try:
            finished = battle.sandbox.run(program)
        except SandboxError as error:
            failed.append(f"{name}: {error}")
            return
        done.append(name)
        if not name and not finished.ok:
            failed.append(str(finished))

    several_at_a_time(run, names, BATTLE_S)  # what is made once, threads and their memory
    done.clear()
    before = holdings(battle.host)
    several_at_a_time(run, [names[i % len(names)] for i in range(RUNS)], BATTLE_S)
    after = holdings(battle.host)
    settled = time.monotonic() + 10.0  # a container that was given up is replaced meanwhile
    while {**after, "memory": 0} != {**before, "memory": 0} and time.monotonic() < settled:
        time.sleep(0.2)
        after = holdings(battle.host)
    assert failed == []
    assert len(done) == RUNS
    grown = after.pop("memory") - before.pop("memory")
    assert after == before
    assert grown < 24 << 20, f"{grown >> 20} MiB"
    check_canary(battle, Ran(canary=battle.sandbox.run(canary())))
