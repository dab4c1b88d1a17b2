"""Our side of a session: requests to the supervisor inside, and what its answers may be.

The supervisor (``inside_session``) shares its sandbox with untrusted code, so an answer is data
that may be forged: it is bounded, and checked field by field. What it claims is only shown to the
one who sent the code. How the bytes travel is the backend's: a ``Line``.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from rewards.errors import UsageError
from rewards.sandbox import files
from rewards.sandbox.protocol import (
    Ending,
    Program,
    Said,
    SandboxError,
    SessionLimits,
    SessionOver,
)

FILES_BYTES = 64 << 20  # of all files together, as the answer carries them
MAX_ANSWER = FILES_BYTES + (1 << 20)
MAX_PATH, MAX_NAME = 2000, 255  # bytes
GRACE_S = 10.0  # for the supervisor, over the time of a call
LENGTH = struct.Struct(">I")

_SOURCE = Path(__file__).with_name("inside_session.py").read_text()


class Line(Protocol):
    """Bytes to a supervisor and back."""

    def exchange(self, request: bytes, timeout_s: float) -> bytes:
        """The answer's content. Raises SessionOver, SandboxError."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


def program(files: Mapping[str, bytes] | None, limits: SessionLimits) -> Program:
    """What a backend starts to have a supervisor. Raises UsageError for limits that are none."""
    if limits.call_s <= 0 or limits.output_bytes <= 0:
        raise UsageError(f"a session's limits must be positive, got {limits}")
    argv = ("python3", "-I", "-S", "-c", _SOURCE)
    return Program(argv, files=dict(files or {}), limits=limits.whole)


class OpenSession:
    """The ``Session`` of every backend."""

    def __init__(self, line: Line, limits: SessionLimits) -> None:
        self._line, self._limits = line, limits
        self._over: Ending | None = None
        self.closed = False

    def python(self, code: str) -> Said:
        return self._call("python", code)

    def shell(self, command: str) -> Said:
        if "\0" in command:
            raise UsageError("a command holds a NUL byte, which no shell can be given")
        return self._call("shell", command)

    def read(self, path: str) -> bytes:
        return _bytes(self._ask({"do": "read", "path": path}, "content"))

    def write(self, path: str, content: bytes) -> None:
        packed = base64.b64encode(content).decode()
        self._ask({"do": "write", "path": path, "content": packed})

    def files(self) -> dict[str, bytes]:
        found = self._ask({"do": "files", "most_bytes": FILES_BYTES}, "files")
        if not isinstance(found, dict) or not _one_tree(found, self._limits.whole.files):
            raise SessionOver(Ending.SIGNAL)
        return {path: _bytes(content) for path, content in found.items()}

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._line.close()

    def _call(self, kind: str, text: str) -> Said:
        limits = self._limits
        request: dict[str, Any] = {"do": "call", "kind": kind, "text": text}
        request |= {"wall_s": limits.call_s, "limit": limits.output_bytes}
        answer = self._ask(request)
        return read_said(answer, limits.output_bytes)

    def _ask(self, request: dict[str, Any], wanted: str = "") -> Any:
        """The answer, or its field ``wanted``. Raises OSError for an error inside."""
        if self.closed:
            raise SandboxError("the session is closed")
        if self._over is not None:
            raise SessionOver(self._over)
        try:
            raw = self._line.exchange(json.dumps(request).encode(), self._limits.call_s + GRACE_S)
            answer = _object(raw)
        except SessionOver as over:
            self._over = over.ending
            self._line.close()
            raise
        if "error" in answer:
            raise OSError(str(answer["error"])[:1000])
        return answer.get(wanted) if wanted else answer


def read_said(answer: Mapping[str, Any], output_bytes: int) -> Said:
    """Raises SessionOver for what no supervisor says."""
    output, dropped = _bytes(answer.get("output")), answer.get("dropped")
    code, ending = answer.get("exit_code"), answer.get("ending")
    fits = type(dropped) is int and dropped >= 0 and len(output) <= output_bytes
    ended = ending in (Ending.EXIT, Ending.WALL, Ending.SIGNAL)
    if not fits or not ended or not (code is None or (type(code) is int and 0 <= code < 256)):
        raise SessionOver(Ending.SIGNAL)
    assert isinstance(dropped, int)
    return Said(output, dropped, Ending(str(ending)), code, answer.get("lost") is True)


def _one_tree(paths: Collection[str], most: int) -> bool:
    """Whether a sandbox can be given these files again: a supervisor may have been forged."""
    folders: set[str] = set()
    try:
        for path in paths:
            files.check(path)
            *parents, _ = parts = path.split("/")
            if len(path.encode()) > MAX_PATH or max(len(one.encode()) for one in parts) > MAX_NAME:
                return False
            folders |= {"/".join(parents[:n]) for n in range(1, len(parents) + 1)}
    except ValueError:
        return False
    return len(paths) + len(folders) <= most and not folders & set(paths)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise SessionOver(Ending.SIGNAL)
    return answer


def _bytes(content: object) -> bytes:
    try:
        return base64.b64decode(content, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error):
        raise SessionOver(Ending.SIGNAL) from None
