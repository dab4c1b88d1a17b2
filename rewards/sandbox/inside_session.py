"""Runs inside a sandbox, as its program: an interpreter and a shell that outlive the calls.

Started as ``python3 -c <this text>``; it imports nothing of ours. Requests and answers are frames
on stdin and stdout: four bytes of length (big endian), then JSON. ::

    supervisor (this)         reads requests, keeps the time of each call, cuts what it writes
      interpreter             runs code in one namespace, shows the value of a last expression
      shell                   bash, or sh; runs commands one after another

Whatever overruns its time is killed with every other process in here but the supervisor: files
stay, variables and the shell's folder are lost, and the answer says so. What runs in here may
attack the supervisor, and has then ended its own session.
"""

from __future__ import annotations

import ast
import base64
import json
import linecache
import os
import select
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback
import types
from typing import Any

LENGTH = struct.Struct(">I")
CHUNK = 1 << 16
MAX_PATH = 2000  # of a file that is handed out
COMMANDS, STATUS = 3, 4  # descriptors of a worker, beside its output


def take(fd: int, size: int) -> bytes | None:
    """Exactly ``size`` bytes; None when the other end has closed."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), CHUNK))
        if not piece:
            return None
        data += piece
    return bytes(data)


def give(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def frame(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return LENGTH.pack(len(data)) + data


def receive(fd: int) -> str | None:
    """The content of the next frame; None when the other end has closed."""
    head = take(fd, LENGTH.size)
    data = head and take(fd, *LENGTH.unpack(head))
    return None if data is None else data.decode("utf-8", "surrogatepass")


# the interpreter


def interpret() -> None:
    """Run what comes on COMMANDS; the status of each goes to STATUS: 0, or 1 when it raised."""
    me, number = os.getpid(), 0
    for fd in (COMMANDS, STATUS):
        os.set_inheritable(fd, False)
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, [""]
    while (code := receive(COMMANDS)) is not None:
        number += 1
        status = execute(code, f"<call {number}>", module.__dict__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if os.getpid() != me:  # the code forked and came back twice
            os._exit(0)
        give(STATUS, b"%d\n" % status)


def execute(code: str, name: str, namespace: dict[str, Any]) -> int:
    """0, or 1 when it raised: then it is shown as an interpreter shows it."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            if value is not None:
                print(repr(value))
        return 0
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  boundary: model text
        own = error.__traceback__.tb_next if error.__traceback__ else None
        error.__traceback__ = own if not isinstance(error, SyntaxError) else None
        traceback.print_exception(error)
        return 1


# the supervisor


class Worker:
    """An interpreter or a shell, and the pipes to it."""

    def __init__(self, kind: str, source: str) -> None:
        self.kind = kind
        commands, self.commands = os.pipe()
        self.status, status = os.pipe()
        self.output, output = os.pipe()
        if kind == "python":
            argv = [sys.executable, "-c", source, "interpreter"]
        elif shutil.which("bash"):
            argv = ["bash", "--noprofile", "--norc", f"/proc/self/fd/{COMMANDS}"]
        else:
            argv = ["sh", f"/proc/self/fd/{COMMANDS}"]
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            close_fds=False,
            start_new_session=True,
            preexec_fn=lambda: (
                # first out of each other's way
                [os.dup2(fd, 100 + i, False) for i, fd in enumerate((commands, status))],
                [os.dup2(100 + i, fd) for i, fd in enumerate((COMMANDS, STATUS))],
            ),
        )
        for fd in (commands, status, output):
            os.close(fd)
        for fd in (self.commands, self.status, self.output):
            os.set_blocking(fd, False)

    def written(self, text: str) -> bytes:
        """What this worker reads as one command."""
        if self.kind == "python":
            return frame(text)
        line = f"{{ eval {shlex.quote(text)}\n}} </dev/null {STATUS}>&- {COMMANDS}<&-\n"
        return f"{line}printf '%d\\n' $? >&{STATUS}\n".encode("utf-8", "surrogatepass")

    def close(self) -> None:
        for fd in (self.commands, self.status, self.output):
            os.close(fd)


class Call:
    """One command in a worker: what it writes, and the line with its status."""

    def __init__(self, worker: Worker, text: str, limit: int) -> None:
        self.worker, self.limit = worker, limit
        self.rest = memoryview(worker.written(text))
        self.said, self.dropped = bytearray(), 0
        self.status, self.ended = b"", False
        self.poll = select.poll()
        self.poll.register(worker.status, select.POLLIN)
        self.poll.register(worker.output, select.POLLIN)
        self.poll.register(worker.commands, select.POLLOUT)

    @property
    def exit_code(self) -> int | None:
        """None when the worker ended without a status."""
        line, whole, _ = self.status.partition(b"\n")
        return int(line) if whole and line.isdigit() and len(line) < 4 else None

    def to_end(self, deadline: float) -> bool:
        """Whether it ended before ``deadline``."""
        while not self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for fd, _ in self.poll.poll(left * 1000):
                self.serve(fd)
        while self.hear() and time.monotonic() < deadline:  # what it wrote before the status
            pass
        return True

    def serve(self, fd: int) -> None:
        if fd == self.worker.commands:
            self.tell()
        elif fd == self.worker.output:
            if self.hear() == b"":
                self.poll.unregister(fd)  # it closed what it writes to
        else:
            piece = os.read(fd, 64)
            self.status += piece
            self.ended = not piece or b"\n" in self.status or len(self.status) > 64

    def tell(self) -> None:
        try:
            self.rest = self.rest[os.write(self.worker.commands, self.rest) :]
        except BrokenPipeError:
            self.rest = self.rest[:0]  # its end will be seen elsewhere
        if not self.rest:
            self.poll.unregister(self.worker.commands)

    def hear(self) -> bytes | None:
        """The next piece of output, b"" at its end, None when there is none now."""
        try:
            piece = os.read(self.worker.output, CHUNK)
        except BlockingIOError:
            return None
        kept = piece[: self.limit - len(self.said)]
        self.said += kept
        self.dropped += len(piece) - len(kept)
        return piece


class Supervisor:
    """Answers requests: each public method is one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.workers: dict[str, Worker] = {}

    def call(self, kind: str, text: str, wall_s: float, limit: int) -> dict[str, Any]:
        """Run one command: what it wrote (cut at ``limit``), how it ended, and what was lost."""
        worker = self.workers.get(kind)
        if worker is None:
            worker = self.workers[kind] = Worker(kind, self.source)
        call = Call(worker, text, limit)
        in_time = call.to_end(time.monotonic() + wall_s)
        answer: dict[str, Any] = {
            "output": base64.b64encode(call.said).decode(),
            "dropped": call.dropped,
            "ending": "exit",
            "exit_code": call.exit_code,
            "lost": False,
        }
        if not in_time:
            self.end_all()
            return {**answer, "ending": "wall", "exit_code": None, "lost": True}
        if call.exit_code is not None:
            return answer
        del self.workers[kind]  # it ended by itself
        worker.close()
        code = worker.process.wait()
        ending = {"ending": "signal"} if code < 0 else {"exit_code": code}
        return {**answer, **ending, "lost": True}

    def end_all(self) -> None:
        """Kill every other process in here: nothing of a call goes on after its time."""
        try:
            os.kill(-1, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        for worker in self.workers.values():
            worker.close()
            worker.process.wait()
        self.workers.clear()

    # files

    def read(self, path: str) -> dict[str, Any]:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{path} is no file")
            return {"content": base64.b64encode(file.read()).decode()}

    def write(self, path: str, content: str) -> dict[str, Any]:
        if os.path.dirname(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o755)
        with open(fd, "wb") as file:
            file.write(base64.b64decode(content))
        return {}

    def files(self, most_bytes: int) -> dict[str, Any]:
        """All regular files below the working folder; links and absurd paths are left out."""
        found: dict[str, str] = {}
        total = 0
        for folder, _, names in os.walk("."):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        continue
                    if len(path.encode()) > MAX_PATH:
                        continue
                    content = self.read(path)["content"]
                except (OSError, ValueError):
                    continue  # not to be read, or a name that is no text
                total += len(content) + len(path)
                if total > most_bytes:
                    raise OSError(f"the files are larger than {most_bytes} bytes")
                found[path[2:]] = content
        return {"files": found}


def main(source: str) -> None:
    supervisor = Supervisor(source)
    home = os.getcwd()
    while (text := receive(0)) is not None:
        request = json.loads(text)
        what = request.pop("do")
        try:
            os.chdir(home)
            answer = getattr(supervisor, what)(**request)
        except (OSError, ValueError, MemoryError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        give(1, frame(json.dumps(answer)))


if __name__ == "__main__":
    if sys.argv[1:] == ["interpreter"]:
        interpret()
    else:
        main(sys.orig_argv[sys.orig_argv.index("-c") + 1])
