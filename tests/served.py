"""Servers as users start them: ``posttrain serve`` in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager


@contextmanager
def serving(checkpoint, *options, env=None, interrupt=False):
    """Yields (URL, process); ends it with SIGINT, as Ctrl-C does, and wants a clean end."""
    command = [sys.executable, "-m", "posttrain.cli", "serve", str(checkpoint), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )
    said = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reader.start()
    try:
        url = process.stdout.readline().strip()
        assert url, "".join(said)
        yield url, process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        reader.join(5)
        assert "the server has ended" in said[-1]
        assert "Traceback" not in "".join(said)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
