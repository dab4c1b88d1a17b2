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

LENGTH = struct.Struct(">I")
CHUNK = 1 << 16
COMMANDS, STATUS = 3, 4  # descriptors of a worker, beside its output


def take(fd, size):
    """Exactly ``size`` bytes; None when the other end has closed."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), CHUNK))
        if not piece:
            return None
        data += piece
    return bytes(data)


def give(fd, data):
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def frame(text):
    data = text.encode("utf-8", "surrogatepass")
    return LENGTH.pack(len(data)) + data


# the interpreter


def interpret():
    """Run what comes on COMMANDS; the status of each goes to STATUS: 0, or 1 when it raised."""
    me, number = os.getpid(), 0
    for fd in (COMMANDS, STATUS):
        os.set_inheritable(fd, False)
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, [""]
    while (head := take(COMMANDS, LENGTH.size)) is not None:
        code = take(COMMANDS, *LENGTH.unpack(head)).decode("utf-8", "surrogatepass")
        number += 1
        status = execute(code, f"<call {number}>", module.__dict__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if os.getpid() != me:  # the code forked and came back twice
            os._exit(0)
        give(STATUS, b"%d\n" % status)


def execute(code, name, namespace):
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            if value is not None:
                print(repr(value))
        return 0
    except SystemExit:
        raise
    except BaseException as error:  # whatever it is, it is shown as an interpreter shows it
        own = error.__traceback__.tb_next if error.__traceback__ else None
        error.__traceback__ = own if not isinstance(error, SyntaxError) else None
        traceback.print_exception(error)
        return 1


# the supervisor


class Worker:
    """An interpreter or a shell, and the pipes to it."""

    def __init__(self, kind, source):
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

    def written(self, text):
        """What this worker reads as one command."""
        if self.kind == "python":
            return frame(text)
        line = f"{{ eval {shlex.quote(text)}\n}} </dev/null {STATUS}>&- {COMMANDS}<&-\n"
        return f"{line}printf '%d\\n' $? >&{STATUS}\n".encode("utf-8", "surrogatepass")

    def close(self):
        for fd in (self.commands, self.status, self.output):
            os.close(fd)


class Supervisor:
    def __init__(self, source):
        self.source = source
        self.workers = {}

    def call(self, kind, text, wall_s, limit):
        """Run one command: what it wrote (cut at ``limit``), how it ended, and what was lost."""
        worker = self.workers.get(kind)
        if worker is None:
            worker = self.workers[kind] = Worker(kind, self.source)
        said, dropped, status = self.talk(worker, worker.written(text), wall_s, limit)
        answer = {"output": base64.b64encode(said).decode(), "dropped": dropped, "lost": False}
        if status is None:
            self.end_all()
            return answer | {"ending": "wall", "exit_code": None, "lost": True}
        if status == b"":  # it ended by itself
            del self.workers[kind]
            worker.close()
            code = worker.process.wait()
            ending = {"ending": "exit", "exit_code": code} if code >= 0 else {"ending": "signal"}
            return {"exit_code": None} | answer | ending | {"lost": True}
        return answer | {"ending": "exit", "exit_code": int(status)}

    def talk(self, worker, command, wall_s, limit):
        """Output, bytes left out, and the status line: empty when it ended, None when too late."""
        deadline, rest = time.monotonic() + wall_s, memoryview(command)
        said, dropped, status = bytearray(), 0, b""
        poll = select.poll()
        poll.register(worker.status, select.POLLIN)
        poll.register(worker.output, select.POLLIN)
        poll.register(worker.commands, select.POLLOUT)
        over = False
        while not over:
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(said), dropped, None
            for fd, event in poll.poll(left * 1000):
                if fd == worker.commands:
                    try:
                        rest = rest[os.write(fd, rest) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        poll.unregister(fd)
                    continue
                piece = os.read(fd, CHUNK) if event & select.POLLIN else b""
                if fd == worker.output:
                    kept = piece[: limit - len(said)]
                    said += kept
                    dropped += len(piece) - len(kept)
                    if not piece:
                        poll.unregister(fd)  # it closed what it writes to
                else:
                    status += piece[:20]
                    over = not piece or b"\n" in status
        while piece := self.more(worker.output):
            kept = piece[: limit - len(said)]
            said += kept
            dropped += len(piece) - len(kept)
            if time.monotonic() > deadline:  # something in the background writes without end
                break
        line = status.partition(b"\n")[0]
        return bytes(said), dropped, line if line.isdigit() and b"\n" in status else b""

    def more(self, fd):
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            return b""

    def end_all(self):
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

    def read(self, path):
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{path} is no file")
            return {"content": base64.b64encode(file.read()).decode()}

    def write(self, path, content):
        if os.path.dirname(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o755)
        with open(fd, "wb") as file:
            file.write(base64.b64decode(content))
        return {}

    def files(self, most_bytes):
        """All regular files below the working folder; links are left out."""
        found, total = {}, 0
        for folder, _, names in os.walk("."):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        continue
                    path.encode()
                    content = self.read(path)["content"]
                except (OSError, ValueError):
                    continue  # not to be read, or a name that is no text
                total += len(content) + len(path)
                if total > most_bytes:
                    raise OSError(f"the files are larger than {most_bytes} bytes")
                found[path[2:]] = content
        return {"files": found}


def main(source):
    supervisor = Supervisor(source)
    home = os.getcwd()
    while (head := take(0, LENGTH.size)) is not None:
        request = json.loads(take(0, *LENGTH.unpack(head)))
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
