"""Decides how a folder of results comes to be: whole under its name, or not at all.

It is written beside its place, under a hidden name, and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.errors import UsageError
from posttrain.storage.jsonl import sync_folder


def check_free(out: Path) -> None:
    """Raises UsageError when ``out`` holds anything already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill inside the ``with`` block; it becomes ``out`` when that ends well."""
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield aside
        # What mkdtemp and safetensors make is for their owner only: it would lock servers out.
        aside.chmod(0o755)
        for path in aside.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(aside, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
