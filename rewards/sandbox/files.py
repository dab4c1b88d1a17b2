"""Puts a program's files into the empty folder that it will start in. Nothing of it runs yet."""

from __future__ import annotations

import os
from collections.abc import Sequence


def check(path: str) -> None:
    """Raises ValueError for a path that would leave the working directory, or is no path."""
    parts = path.split("/")
    if not path or "\0" in path or path.startswith("/") or {"", ".", ".."} & set(parts):
        raise ValueError(f"a program's file needs a plain relative path, got {path!r}")


def put(folder: str, paths: Sequence[str], contents: Sequence[bytes], owner: int = -1) -> None:
    """Write the files, for everyone to run. Raises OSError, with ENOSPC when they do not fit."""
    for path, content in zip(paths, contents, strict=True):
        check(path)
        below = folder
        for part in path.split("/")[:-1]:
            below = f"{below}/{part}"
            if not os.path.isdir(below):
                os.mkdir(below, 0o755)
                os.chown(below, owner, owner)
        fd = os.open(f"{folder}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchown(fd, owner, owner)
        finally:
            os.close(fd)
