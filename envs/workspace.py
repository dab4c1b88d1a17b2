"""A folder with files, commands, and hidden tests at the end: tasks as on a developer's machine.

A row has ``prompt``, ``files`` (path to text) and ``checks``. The model works with the tools of
``SessionEnv`` and ``write_file``; when it answers without a call, its files are taken out, the
session ends, and each check runs in a fresh sandbox over a copy of them. A check::

    {"command": "python3 main.py", "stdin": "1 2", "stdout": "3", "files": {"data.txt": "..."}}

passes when the command exits with 0 and, where ``stdout`` is given, writes that (white space at the
ends aside). ``files`` of a check replace the model's, and were never in its session.

How it can be hacked: what is compared with ``stdout`` is compared in our process, and can only be
answered. An exit code is the word of a process that runs the model's code: a module under test can
end it with 0. So prefer ``stdout``, or a test command that does not import the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from envs.protocol import Message, Task, instant
from envs.sessions import SessionEnv, StateLost, files_of
from rewards import Outcome, Score, UsageError, did_you_mean
from rewards.sandbox import Limits, Program, Said, SandboxError, SessionOver
from rewards.sandbox.protocol import Ending

FIELDS = ("command", "stdin", "stdout", "files")


@dataclass(frozen=True, slots=True)
class Check:
    """One hidden test."""

    command: str
    stdin: bytes
    stdout: str | None
    files: Mapping[str, bytes]


class Workspace(SessionEnv):
    """One episode over a folder; judged by the task's hidden checks."""

    # What fits into a session must fit here, beside a check's own files.
    check_limits = Limits(wall_s=30.0, cpu_s=30.0, disk_bytes=128 << 20, files=4000)
    judge_timeout_s = 600.0

    @instant
    def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        self._checks = checks_of(task.columns, task.task_id)
        return super().start(task, seed=seed)

    def write_file(
        self, path: Annotated[str, "relative to the folder"], content: Annotated[str, "all of it"]
    ) -> str:
        """Write a text file; it replaces one that is there."""
        written = Said(b"written", 0, Ending.EXIT, 0, False)

        def write(session: Any) -> Said:
            session.write(path, content.encode("utf-8", "surrogatepass"))
            return written

        return self._told(write)

    async def judge(self, message: Message) -> Score:
        """Run the checks over what the model has left."""
        from rewards.threads import WORLDS, in_thread

        return await in_thread(self._judged, self.judge_timeout_s, WORLDS)

    def _judged(self) -> Score:
        try:
            left = self._left()
            passed = [self._passes(check, left) for check in self._checks]
        except StateLost as lost:
            return Score(0.0, Outcome.WRONG, detail=str(lost))
        except SandboxError as error:
            return Score(None, Outcome.ERROR, detail=f"sandbox {self._sandbox.name}: {error}")
        why = [detail for detail in passed if detail]
        share = 1 - len(why) / len(passed)
        outcome = Outcome.WRONG if why else Outcome.CORRECT
        return Score(float(not why), outcome, {"checks_passed": share}, "; ".join(why)[:1000])

    def _left(self) -> Mapping[str, bytes]:
        """The files as the model has left them. Raises StateLost, SandboxError."""
        session, self._session = self._session, None
        if session is None:
            return self._files
        try:
            return session.files()
        except SessionOver as over:
            raise StateLost(str(over)) from None
        except OSError as error:
            raise StateLost(f"the files could not be taken: {error}") from None
        finally:
            session.close()

    def _passes(self, check: Check, left: Mapping[str, bytes]) -> str:
        """Why a check does not pass; empty when it does. Raises StateLost, SandboxError."""
        argv = ("sh", "-c", check.command)
        files = {**without(left, check.files), **check.files}
        try:
            done = self._sandbox.run(Program(argv, files, check.stdin, self.check_limits))
        except (ValueError, UsageError) as error:  # too many or too large: the model's doing
            raise StateLost(f"the files cannot be run: {error}") from None
        if not done.ok:
            said = done.stderr.decode("utf-8", "replace")[-200:]
            return f"{check.command!r:.80}: {done.ending} {done.exit_code} {said}"
        written = done.stdout.decode("utf-8", "replace").strip()
        if check.stdout is not None and written != check.stdout.strip():
            return f"{check.command!r:.80}: wrote {written!r:.100}"
        return ""


def without(files: Mapping[str, bytes], others: Mapping[str, bytes]) -> dict[str, bytes]:
    """``files`` that do not stand in the place of one of ``others``, or of a folder of theirs."""

    def clashes(path: str) -> bool:
        return any(
            path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/")
            for one in others
        )

    return {path: content for path, content in files.items() if not clashes(path)}


def checks_of(columns: Mapping[str, Any], where: str) -> tuple[Check, ...]:
    """The checks of a row. Raises UsageError."""
    given = columns.get("checks")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise UsageError(f"{where}: checks is a list of one check or more, got {given!r:.100}")
    return tuple(_check(one, f"{where}, check {i}") for i, one in enumerate(given, start=1))


def _check(given: Any, where: str) -> Check:
    if not isinstance(given, Mapping) or not isinstance(given.get("command"), str):
        raise UsageError(f"{where}: it needs a command, got {given!r:.100}")
    for name, value in given.items():
        if name not in FIELDS:
            raise UsageError(f"{where}: unknown field {name!r}.{did_you_mean(str(name), FIELDS)}")
        if name != "files" and not isinstance(value, str | None):
            raise UsageError(f"{where}: {name} is a text, got {value!r:.100}")
    stdin = (given.get("stdin") or "").encode()
    return Check(
        given["command"], stdin, given.get("stdout"), files_of(given.get("files") or {}, where)
    )


def check_row(row: Mapping[str, Any]) -> None:
    """Raises UsageError for a row that is no task."""
    checks_of(row, "a row")
    files_of(row.get("files") or {}, "a row")
