"""Decides how documents between stages are read: ``NNNNN.jsonl.gz``, a JSON object a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.errors import RunError, UsageError


def document_files(folder: str | Path) -> list[Path]:
    """In the order of their names. Raises UsageError where there are none."""
    files = sorted(Path(folder).glob("*.jsonl.gz"))
    if not files:
        raise UsageError(f"no documents in {folder}: it has no NNNNN.jsonl.gz")
    return files


def numbered_documents(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line, counted from 1, and document: {"text", "id", "metadata"}; the metadata are a dict.

    Raises RunError, naming file and line, for what is no document.
    """
    line = 1
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for text in file:
                document = json.loads(text)
                if not isinstance(document["text"], str):
                    raise TypeError("its text is none")
                yield line, {**document, "metadata": document.get("metadata") or {}}
                line += 1
    except (ValueError, KeyError, TypeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RunError(f"{path}, line {line}: no document ({error!r})") from error
