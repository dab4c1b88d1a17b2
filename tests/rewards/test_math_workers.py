"""Worker processes: deadlines, memory, death, threads, asyncio, fork; none is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import rewards
from rewards import Outcome
from rewards.math import score, score_batch
from rewards.math.scoring import workers
from rewards.workers import WorkerDied, WorkerPool, WorkerRaised

ROOT = Path(__file__).resolve().parents[2]
JOBS = """
import os, time, signal

def run(job):
    kind, value = job
    if kind == "echo":
        return value
    if kind == "pid":
        return os.getpid()
    if kind == "sleep":
        time.sleep(value)
    if kind == "spin":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if kind == "c-code":
        return 3 ** (10 ** value) % 7
    if kind == "memory":
        return len(bytearray(value))
    if kind == "exit":
        os._exit(value)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise ValueError("a bad job")
    if kind == "flood":
        return "x" * value
    if kind == "print":
        print("noise " * 10000, flush=True)
    return "done"
"""
EQUAL = (r"\boxed{\sqrt{12}}", r"2\sqrt{3}")  # only a worker can tell
UNEQUAL = (r"\boxed{\sqrt{12}}", r"3\sqrt{2}")


@pytest.fixture
def pool(tmp_path, monkeypatch):
    (tmp_path / "pool_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    made = WorkerPool("pool_jobs:run", size=2, memory_bytes=1 << 29)
    yield made
    made.close()


def test_jobs_and_their_failures(pool):
    assert pool.call(("echo", {"a": [1]}), timeout_s=5) == {"a": [1]}
    assert pool.call(("print", 0), timeout_s=5) == "done"
    assert len(pool.call(("flood", 3_000_000), timeout_s=5)) == 3_000_000
    assert pool.call(("echo", "y" * 3_000_000), timeout_s=5) == "y" * 3_000_000
    with pytest.raises(WorkerRaised, match="ValueError: a bad job"):
        pool.call(("raise", 0), timeout_s=5)
    with pytest.raises(WorkerRaised, match="MemoryError"):
        pool.call(("memory", 1 << 30), timeout_s=5)
    with pytest.raises(WorkerDied, match="status 3"):
        pool.call(("exit", 3), timeout_s=5)
    with pytest.raises(WorkerDied, match="status -9"):
        pool.call(("kill", 0), timeout_s=5)
    assert pool.call(("echo", 1), timeout_s=5) == 1


@pytest.mark.parametrize("job", [("spin", 0), ("c-code", 8), ("sleep", 60)])
def test_a_deadline_kills_the_child_and_nothing_else(pool, job):
    pool.start()
    before = sorted(pool.pids())
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer after 0.3 s"):
        pool.call(job, timeout_s=0.3)
    assert time.monotonic() - started < 2
    started = time.monotonic()
    assert [pool.call(("echo", i), timeout_s=5) for i in range(4)] == [0, 1, 2, 3]
    assert time.monotonic() - started < 1
    assert sorted(pool.pids()) == before


def test_a_child_is_used_again_and_replaced_after_its_jobs(tmp_path, pool):
    single = WorkerPool("pool_jobs:run", size=1, max_jobs=3)
    try:
        pids = [single.call(("pid", 0), timeout_s=5) for _ in range(7)]
    finally:
        single.close()
    assert pids[0] == pids[2] != pids[3] == pids[5] != pids[6]


def test_a_module_that_cannot_be_imported_says_so():
    broken = WorkerPool("no_such_module:run", size=1)
    with pytest.raises(WorkerDied, match="did not start: ModuleNotFoundError"):
        broken.call(0, timeout_s=1)


def test_close_leaves_no_process_and_a_later_call_starts_again(pool):
    pool.start()
    pids = pool.pids()
    children = [child.pid for pid in pids for child in psutil.Process(pid).children()]
    assert len(pids) == len(children) == 2
    pool.close()
    assert gone(pids + children)
    assert pool.call(("echo", 5), timeout_s=5) == 5


def test_a_killed_keeper_is_replaced(pool):
    pool.start()
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    answers = []
    for i in range(4):
        try:
            answers.append(pool.call(("echo", i), timeout_s=5))
        except WorkerDied:
            answers.append(None)
    assert answers[2:] == [2, 3]


def test_in_many_threads():
    with ThreadPoolExecutor(8) as threads:
        pairs = [EQUAL, UNEQUAL] * 20
        values = list(threads.map(lambda pair: score(*pair).value, pairs))
    assert values == [1.0, 0.0] * 20


def test_beside_an_event_loop_that_goes_on():
    async def main():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        heart = asyncio.create_task(beat())
        reward = rewards.load("math")
        case = rewards.Case(prompt="", completion=EQUAL[0], answer=EQUAL[1])
        other = rewards.Case(prompt="", completion=UNEQUAL[0], answer=UNEQUAL[1])
        judged = await asyncio.gather(*[rewards.apply(reward, c) for c in [case, other] * 10])
        slow = workers().acall((r"\sqrt{2}", r"\sqrt{3}"), timeout_s=1)
        await slow
        heart.cancel()
        return [one.value for one in judged], beats

    values, beats = asyncio.run(main())
    assert values == [1.0, 0.0] * 10
    assert beats >= 1


def test_the_registered_reward_refuses_an_empty_gold_at_load_time():
    reward = rewards.load("math")
    assert rewards.required_columns(reward) == {"answer"}
    with pytest.raises(rewards.UsageError, match="reward 'math': the gold answer is empty"):
        rewards.registry.check_row(reward, {"answer": " "})
    rewards.registry.check_row(reward, {"answer": "42"})


def test_in_a_forked_process():
    assert score(*EQUAL).value == 1.0  # the pool runs before the fork
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            values = [score(*EQUAL).value, score(*UNEQUAL).value]
            os.write(write, repr(values).encode())
            workers().close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    assert told == "[1.0, 0.0]"
    assert score(*UNEQUAL).value == 0.0  # and is as it was


def test_a_poisoned_answer_costs_one_worker_and_not_the_batch(monkeypatch):
    """The bounds let nothing slow through that we know of, so the deadline is made tiny for one."""
    poison = (r"\boxed{\int_0^1 \frac{\ln(1+x)\sin(x^3)}{1+x^2+\cos(x)} dx}", r"\int_0^2 x^x dx")
    pairs = [EQUAL, poison, UNEQUAL, poison, EQUAL] * 2
    started = time.monotonic()
    judged = score_batch([a for a, _ in pairs], [b for _, b in pairs], timeout_s=0.7)
    assert time.monotonic() - started < 10
    assert [one.value for one in judged[::5]] == [1.0, 1.0]
    assert [one.value for one in judged[2::5]] == [0.0, 0.0]
    assert [one.value for one in judged[4::5]] == [1.0, 1.0]
    for one in judged[1::5] + judged[3::5]:
        assert one.outcome in (Outcome.TIMEOUT, Outcome.WRONG)
        assert (one.value is None) == (one.outcome is Outcome.TIMEOUT)


def test_nothing_is_executed(tmp_path):
    mark = tmp_path / "executed"
    for text in (
        f"__import__('os').system('touch {mark}')",
        f"__import__('os').system('touch {mark}') or 3\\pi",
        f"[open('{mark}','w').write('1'),2]",
        f"\\input{{{mark}}}",
        f"\\write18{{touch {mark}}}",
    ):
        for gold in ("3\\pi", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "x", "\\int x dx"):
            assert score(f"\\boxed{{{text}}}", gold).value == 0.0
    assert not mark.exists()


SCRIPT = """
import os, sys, time
from rewards.math import score
from rewards.math.scoring import workers
workers().start()
assert score(r"\\boxed{\\sqrt{12}}", r"2\\sqrt{3}").value == 1.0
import psutil
print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
time.sleep(float(sys.argv[1]))
"""


def start_script(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 * workers().size
    return process, pids


def test_workers_end_with_a_parent_that_is_killed():
    process, pids = start_script(60)
    process.kill()
    process.wait(10)
    process.stdout.close()
    assert gone(pids)


def test_workers_end_with_a_parent_that_ends():
    process, pids = start_script(0)
    assert process.wait(20) == 0
    process.stdout.close()
    assert gone(pids)


def gone(pids, within_s=5.0):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and not zombie(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def zombie(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_package_is_light():
    code = (
        "import sys, threading, rewards.math; "
        "print({'sympy','mpmath','math_verify','torch'} & {*sys.modules}, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set() 1"
