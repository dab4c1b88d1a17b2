"""Measures the sandboxes: short programs per second, overhead over the bare program, leaks.

::

    python scripts/bench/sandbox.py bubblewrap docker --programs 1000
    python scripts/bench/sandbox.py bubblewrap --programs 10000 --places 2

One JSON line per backend. A program is ``python3 -c "print(1)"``. The overhead is what one ``run``
takes, less the median of the same program started bare, both with the same number at once; p99 is
over single runs. Leaks are counted after the first tenth of the programs and at the end: processes
and descriptors of ours, temporary files, folders of control groups, memory of us and our children.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rewards.sandbox
from rewards.sandbox import Limits, Program
from rewards.sandbox.rootfs import PATH

ARGV = ("python3", "-c", "print(1)")
PROGRAM = Program(ARGV, limits=Limits(wall_s=60.0, cpu_s=30.0))
BARE = 200  # programs, to know what one takes by itself


def timed(act: Callable[[], bool], times: int, at_once: int) -> tuple[list[float], float]:
    """Seconds of each call, and of all together. Raises RuntimeError when one fails."""

    def share(count: int) -> list[float]:
        each = []
        for _ in range(count):
            start = time.perf_counter()
            if not act():
                raise RuntimeError("a program failed that cannot")
            each.append(time.perf_counter() - start)
        return each

    counts = [len(range(i, times, at_once)) for i in range(at_once)]
    with ThreadPoolExecutor(at_once) as threads:  # a future per program would look like a leak
        start = time.perf_counter()
        each = [seconds for some in threads.map(share, counts) for seconds in some]
        return each, time.perf_counter() - start


def bare() -> bool:
    done = subprocess.run(ARGV, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return done.stdout == b"1\n"


def processes() -> list[tuple[int, int, int]]:
    """(pid, parent, resident KiB) of everything that runs."""
    told = subprocess.run(["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True, check=True)
    rows = [list(map(int, row.split())) for row in told.stdout.splitlines()[1:]]
    return [(pid, parent, rss) for pid, parent, rss in rows]


def held() -> dict[str, int]:
    """What we hold now."""
    rows, mine = processes(), {os.getpid()}
    for _ in range(4):  # launchers, and what they have
        mine |= {pid for pid, parent, _ in rows if parent in mine}
    temporary = [one for one in os.listdir(tempfile.gettempdir()) if "sandbox" in one]
    groups = Path("/sys/fs/cgroup").glob("**/rewards-sandbox-*")
    return {
        "processes": len(mine) - 1,  # without ps
        "descriptors": len(os.listdir("/proc/self/fd")),
        "temporary": len(temporary),
        "cgroups": sum(1 for _ in groups),
        "rss_kib": sum(rss for pid, _, rss in rows if pid in mine),
    }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(name: str, programs: int, places: int) -> dict[str, Any]:
    size = {"containers" if name == "docker" else "places": places}
    sandbox = rewards.sandbox.load(name, allow_unsafe=name == "process", **size)
    try:

        def run() -> bool:
            return sandbox.run(PROGRAM).stdout == b"1\n"

        timed(run, 2 * places, places)
        alone, _ = timed(bare, BARE, places)
        usual = statistics.median(alone)
        first, _ = timed(run, max(1, programs // 10), places)
        before = held()
        rest, seconds = timed(run, programs - len(first), places)
        after = held()
        each = [one - usual for one in first + rest]
        return {
            "sandbox": name,
            "programs": programs,
            "places": places,
            "per_s": round(len(rest) / seconds, 1),
            "bare_ms": round(1e3 * usual, 1),
            "overhead_p50_ms": round(1e3 * statistics.median(each), 1),
            "overhead_p99_ms": round(1e3 * percentile(each, 0.99), 1),
            "grown": {key: after[key] - before[key] for key in before},
            "load": round(os.getloadavg()[0], 1),
        }
    finally:
        sandbox.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sandboxes", nargs="*", default=["bubblewrap"], metavar="SANDBOX")
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--places", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["PATH"] = (
        PATH  # the same python3 for all; a version manager's takes 100 ms to find it
    )
    for name in options.sandboxes:
        print(json.dumps(measure(name, options.programs, options.places)), flush=True)


if __name__ == "__main__":
    main()
