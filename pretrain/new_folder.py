"""Decides how a folder comes to be: whole under its name, or not at all.

It is written beside its place, under a hidden name, and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UsageError


def check_free(out: Path) -> None:
    """Raises UsageError when ``out`` holds anything already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill inside the ``with`` block; it becomes ``out`` when that ends well.

    Its hidden name is fixed, so what a killed run left there is cleared by the next one.
    """
    check_free(out)
    aside = out.parent / f".{out.name}.unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        # What safetensors makes is for its owner only: it would lock servers out.
        for path in aside.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
