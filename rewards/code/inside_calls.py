"""Runs inside the sandbox, beside the candidate's code: makes calls, writes down what comes back.

It knows no expected value and decides nothing, so there is nothing here to steal or to forge: a
candidate that takes this process over can make it say what the candidate could have returned
anyway. The code is in ``candidate.py``. ``work.json`` holds ``{"calls": [{"function", "args",
"kwargs"}, ...], "wall_s": seconds for all, "stop": whether to end at the first that fails}``, with
values in the form of ``rewards.code.values``.

One line of JSON is written for each call: ``{"call": i, "value": form, "args": forms after the
call, or null if unchanged}``, with ``"raised": [type, text]`` or ``"failed": why`` in place of the
value; or ``{"load": error}`` when the code itself does not run.

The code is loaded once, and each call is made in a process forked from there: what one call does to
globals, or to its process, the next does not see.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from rewards.code.values import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 16


def main() -> None:
    channel = os.dup(1)
    nowhere = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nowhere, 1)
    with open("work.json") as file:
        work = json.load(file)
    os.unlink("work.json")  # the calls to come are none of the candidate's business
    until = time.monotonic() + work["wall_s"]
    try:
        namespace = load("candidate.py")
    except BaseException as error:  # noqa: BLE001  boundary: any code at all
        say(channel, {"load": described(error)})
        return
    for i, call in enumerate(work["calls"]):
        # Half of what is left: one call that hangs leaves time for those after it.
        line = in_a_fork(namespace, call, time.monotonic() + (until - time.monotonic()) / 2)
        say(channel, {**line, "call": i})
        if work["stop"] and "failed" in line:
            return


def say(channel: int, line: dict[str, Any]) -> None:
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def load(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    module = type(sys)("candidate")  # not "__main__": a script's main part is not run
    sys.modules["candidate"] = module
    exec(code, module.__dict__)
    return module.__dict__


def find(namespace: dict[str, Any], name: str) -> Any:
    """The function of that name, or that method of a class ``Solution``."""
    if name not in namespace and hasattr(namespace.get("Solution"), name):
        return getattr(namespace["Solution"](), name)
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    return namespace[name]


def answer(namespace: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    args = [decode(one) for one in call["args"]]
    kwargs = {name: decode(one) for name, one in call["kwargs"].items()}
    before = [encode(one) for one in args]
    value = encode(find(namespace, call["function"])(*args, **kwargs))
    after = [encode(one) for one in args]
    return {"value": value, "args": after if after != before else None}


def described(error: BaseException) -> list[str]:
    """The name of the nearest built-in exception, and the text."""
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins":
            return [kind.__name__, f"{type(error).__name__}: {error}"[:500]]
    return ["Exception", "?"]


def in_a_fork(namespace: dict[str, Any], call: dict[str, Any], deadline: float) -> dict[str, Any]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        try:
            line = answer(namespace, call)
        except BaseException as error:  # noqa: BLE001  boundary: any code at all
            line = {"raised": described(error)}
        say(theirs, line)
        os._exit(0)
    os.close(theirs)
    try:
        data, status = collect(ours, child, deadline)
    finally:
        os.close(ours)
    if status is None:
        return {"failed": "no answer in time"}
    if os.WIFSIGNALED(status):
        return {"failed": f"died of signal {os.WTERMSIG(status)}"}
    try:
        line = json.loads(data)
    except ValueError:
        return {"failed": "left without an answer"}
    return line if isinstance(line, dict) else {"failed": "no answer"}


def collect(source: int, child: int, deadline: float) -> tuple[bytes, int | None]:
    """What the child writes until it ends, and its wait status; None when it had to be killed."""
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return data, None
        ready, _, _ = select.select([source], [], [], min(left, 0.1))
        piece = os.read(source, CHUNK) if ready else b""
        data += piece
        if not piece:  # its end, or silence: then a child of the child may hold the pipe
            pid, status = os.waitpid(child, 0 if ready else os.WNOHANG)
            if pid:
                return data, status


if __name__ == "__main__":
    main()
    os._exit(0)  # not through what the candidate left for the interpreter's end
