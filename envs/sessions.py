"""An episode with a sandbox of its own: an interpreter and a shell that keep their state.

The session (``rewards.sandbox``) is opened at the first call and gone when the episode is closed.
A call that overruns its time is killed: the model reads that variables and the shell's folder are
lost. Code that ends its own session (out of memory, or by attacking it) loses the files as well,
and the next call starts from the task's files. A sandbox that fails ends the episode unjudged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from envs.protocol import Message, Task, instant
from envs.tools import ToolEnv, ToolFailure
from rewards import Reward, UsageError
from rewards.sandbox import Ending, Said, Sandbox, SandboxError, Session, SessionLimits, SessionOver


class StateLost(Exception):
    """A call cost the session its state; the model is told what."""


class SessionEnv(ToolEnv):
    """Tools ``python`` and ``shell`` over one folder."""

    call_timeout_s = 120.0  # the session's own limit is tighter; opening it may take a while

    def __init__(
        self,
        sandbox: Sandbox,
        limits: SessionLimits | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(reward)
        self._sandbox, self._limits = sandbox, limits or SessionLimits()
        self._session: Session | None = None
        self._files: dict[str, bytes] = {}  # that a session starts with

    @instant
    def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        self._files = files_of(task.columns.get("files") or {}, task.task_id)
        return super().start(task, seed=seed)

    def python(
        self, code: Annotated[str, "statements; the value of a last expression is shown"]
    ) -> str:
        """Run Python code. Variables, functions and files stay for the next call."""
        return self._told(lambda session: session.python(code))

    def shell(self, command: Annotated[str, "one or more lines"]) -> str:
        """Run a shell command. Its folder, variables and files stay for the next call."""
        return self._told(lambda session: session.shell(command))

    def close(self) -> None:
        """End the session and all that runs in it."""
        if self._session is not None:
            self._session.close()

    def _told(self, call: Any) -> str:
        """What a call wrote, for the model. Raises StateLost, ToolFailure."""
        try:
            if self._session is None:
                self._session = self._sandbox.session(self._files, self._limits)
            said: Said = call(self._session)
        except SessionOver as over:
            self._session = None
            raise StateLost(f"{over}; the next call starts anew") from None
        except SandboxError as error:
            raise ToolFailure(f"sandbox {self._sandbox.name}: {error}") from error
        text = said.output.decode("utf-8", "replace")
        if said.dropped:
            text += f"\n[{said.dropped} more bytes left out]"
        if said.state_lost:
            raise StateLost(f"{self._why(said)}; it wrote: {text}")
        return text if said.ok else f"{text}\n[exit code {said.exit_code}]"

    def _why(self, said: Said) -> str:
        if said.ending is Ending.WALL:
            return (
                f"killed after {self._limits.call_s:g} s: variables, the shell's folder and "
                "processes are lost, files are there"
            )
        return "it ended by itself: its variables are lost, files are there"


def files_of(given: Any, where: str) -> dict[str, bytes]:
    """Path -> text or bytes, as a session takes them. Raises UsageError."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: files is a mapping of path to text, got {given!r:.100}")
    found = {}
    for path, content in given.items():
        if content is None:  # a column of structs has every row's paths
            continue
        parts = str(path).split("/")
        if not isinstance(content, str | bytes) or {"", ".", ".."} & set(parts) or "\0" in path:
            raise UsageError(f"{where}: file {path!r} needs a plain relative path and a text")
        found[str(path)] = content.encode() if isinstance(content, str) else content
    return found
