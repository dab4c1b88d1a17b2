"""Decides where the raw replies of a judge stay, so that no question is paid for twice.

One file per reply, named by a hash of what was asked: model, messages, sampling, schema, number of
the repetition; not the address, so that the same model on another port is the same judge, and not
the API key. Raw means: the body of the answer as the server sent it. A new parser reads it again.

A file is written beside its place and renamed, and never changed after: several processes, also on
several machines with one network folder, share a cache without locks. A file that is torn or that
nobody could read counts as absent. ``secret`` in the same folder is what the tags and keys of
``rewards.judge.untrusted`` are derived from; it is made once, readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from rewards.errors import UsageError

MIN_SECRET_BYTES = 32


class Cache:
    """Raw replies in ``folder``, which is made. Raises UsageError where nothing can be written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.secret = _secret(self.folder / "secret")
        except OSError as error:
            raise UsageError(
                f"judge: the cache {self.folder} cannot be used: {error.strerror}"
            ) from None

    def get(self, key: str) -> str | None:
        """The raw reply under ``key``, or None."""
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        raw = kept.get("raw") if isinstance(kept, dict) else None
        return raw if isinstance(raw, str) else None

    def put(self, key: str, raw: str, *, model: str) -> None:
        """Keep ``raw`` under ``key``. Raises OSError when the disk will not take it."""
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        _write(path, json.dumps({"model": model, "raw": raw}).encode())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def key_of(**asked: Any) -> str:
    """The name of a question: a hash of all that the reply depends on."""
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _secret(path: Path) -> bytes:
    """What all users of the folder share; the first one makes it."""
    if not path.exists():
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(MIN_SECRET_BYTES))
            os.link(beside, path)  # fails when another was quicker, whose secret then counts
        except FileExistsError:
            pass
        finally:
            os.unlink(beside)
    secret = path.read_bytes()
    if len(secret) < MIN_SECRET_BYTES:
        raise UsageError(f"judge: {path} is no secret of {MIN_SECRET_BYTES} bytes; delete it")
    return secret
