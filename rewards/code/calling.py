"""Makes calls of a candidate's functions in a sandbox, and reads what they returned.

All calls of one run share one start of Python, each in a process of its own forked after the code
was loaded (``rewards.code.inside_calls``). They share the run's limits and its folder; a program
that is ended for passing a limit has no answer for that call and the ones after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from rewards.code.languages import encoded
from rewards.code.values import shallow
from rewards.sandbox.protocol import MEBIBYTE, Ending, Finished, Limits, Program, Sandbox

MARGIN_S = 2.0  # for Python's own start and end, on top of the program's wall time
ANSWER_BYTES = 8 * MEBIBYTE  # of all calls together, at least

Json = dict[str, Any]


@cache
def inside_files() -> Mapping[str, bytes]:
    """What runs in the sandbox, at the paths that it imports itself by."""
    here = Path(__file__).parent
    names = ("values.py", "inside_calls.py", "inside_tests.py")
    files = {f"rewards/code/{name}": (here / name).read_bytes() for name in names}
    return {**files, "rewards/__init__.py": b"", "rewards/code/__init__.py": b""}


def inside(module: str, work: Json, limits: Limits, code: str | None = None) -> Program:
    """A run of one of our modules on ``work``, with the candidate's code or without."""
    files = dict(inside_files())
    files["work.json"] = json.dumps(work).encode()
    if code is not None:
        files["candidate.py"] = encoded(code)
    limits = replace(
        limits,
        wall_s=limits.wall_s + MARGIN_S,
        cpu_s=limits.cpu_s + MARGIN_S,
        output_bytes=max(limits.output_bytes, ANSWER_BYTES),
        disk_bytes=limits.disk_bytes + sum(map(len, files.values())),
        files=limits.files + len(files) + 2,
    )
    return Program(("python3", "-m", f"rewards.code.{module}"), files, limits=limits)


def lines(finished: Finished) -> Iterator[Json]:
    """The JSON objects that a run wrote; what is none was not written by us, and is left out."""
    for line in finished.stdout.split(b"\n"):
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(read, dict):
            yield read


def answers(
    sandbox: Sandbox, code: str, calls: Sequence[Json], limits: Limits, *, stop: bool = False
) -> list[Json]:
    """One answer per call: ``{"value": form, "args": forms or null}``, ``{"raised": [type, text]}``
    or ``{"failed": why}``. With ``stop`` the calls after the first that failed are not made.

    Every byte of it is the candidate's word. Raises SandboxError.
    """
    work = {"calls": list(calls), "wall_s": limits.wall_s, "stop": stop}
    finished = sandbox.run(inside("inside_calls", work, limits, code))
    found: dict[int, Json] = {}
    for line in lines(finished):
        if "load" in line:
            why = f"the code does not load: {_told(line['load'])}"
            return [{"failed": why}] * len(calls)
        i = line.get("call")
        if type(i) is int and 0 <= i < len(calls):
            # Two answers to one call are a forgery, or a guess at both.
            found[i] = {"failed": "answered twice"} if i in found else _checked(line)
    missing = {"failed": f"no answer ({ended(finished)})"}
    return [found.get(i, missing) for i in range(len(calls))]


def _checked(line: Json) -> Json:
    """Only what has the shape of an answer, and nothing beside it."""
    if not shallow(line):
        return {"failed": "an answer nested too deeply"}
    match line:
        case {"failed": str(why)}:
            return {"failed": why[:200]}
        case {"raised": [str(kind), str(text)]}:
            return {"raised": [kind[:100], text[:500]]}
        case {"value": value, "args": list() | None as args}:
            return {"value": value, "args": args}
    return {"failed": "no answer"}


def _told(error: object) -> str:
    match error:
        case [str(), str(text)]:
            return text[:300]
    return "?"


def ended(finished: Finished) -> str:
    """How a program ended, for people."""
    match finished.ending:
        case Ending.EXIT:
            said = finished.stderr[-300:].decode(errors="replace").strip().rpartition("\n")[2]
            return f"exit code {finished.exit_code}" + (f": {said}" if said else "")
        case Ending.SIGNAL:
            return f"signal {finished.signal}"
        case Ending.WALL:
            return "out of wall time"
        case Ending.CPU:
            return "out of CPU time"
        case Ending.MEMORY:
            return "out of memory"
        case Ending.OUTPUT:
            return "too much output"
