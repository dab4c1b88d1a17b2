"""A checkpoint served beside a script, for as long as a ``with`` block lasts.

with posttrain.served("runs/first/model") as url:
    data_gen.rejection_sample(env, data_gen.Server(url, "model"), "data/first", n_tasks=500)
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.errors import RunError
from posttrain.process_guard import GUARD
from posttrain.serving.checks import engine_of, window_of

_END_S = 20.0


@contextmanager
def served(
    checkpoint: str | Path, *, name: str = "", engine: str = "auto", timeout_s: float = 300.0
) -> Iterator[str]:
    """Start ``posttrain serve`` on a free port of loopback; yields ``http://127.0.0.1:PORT/v1``.

    ``name`` is the model's in requests, by default the folder's. The server ends with the block,
    and with this process, however it ends. Raises UsageError for what is no checkpoint or an engine
    that is not installed, and RunError when the server is not ready in ``timeout_s``.
    """
    window_of(str(checkpoint), 0)
    engine = engine_of(engine)
    command = [sys.executable, "-m", "posttrain.cli", "serve", str(checkpoint)]
    command += ["--port", "0", "--engine", engine, *(["--name", name] if name else [])]
    process = subprocess.Popen(
        [*GUARD, *command],
        stdin=subprocess.PIPE,  # closed when this process ends: then the guard ends the server
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield _address(process, str(checkpoint), timeout_s)
    finally:
        _end(process)


def _address(process: subprocess.Popen[str], checkpoint: str, timeout_s: float) -> str:
    """The first line that the server prints."""
    lines: list[str] = []
    out = process.stdout
    assert out is not None
    reader = threading.Thread(target=lambda: lines.append(out.readline()), daemon=True)
    reader.start()
    reader.join(timeout_s)
    if lines and lines[0].startswith("http"):
        return lines[0].strip()
    if reader.is_alive():
        raise RunError(f"serving {checkpoint}: the server was not ready within {timeout_s:g} s")
    raise RunError(f"serving {checkpoint}: the server ended at once; its reason is above")


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
