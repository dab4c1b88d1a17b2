"""Decides how a language model's scores outlive the process that asked for them.

An append-only file, ``{"asked": hash, "score": n}`` a line, written as each score comes. What was
asked is the model and the request's text, so an edited document or prompt is asked about again.
Failures are not written: they are tried again. A line that was torn by a kill counts as none.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash


class ScoreJournal:
    """The scores of one model in ``path``, for the time of a ``with`` block."""

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self._scores: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._scores[row["asked"]] = int(row["score"])
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            self._file.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def number(self) -> int:
        """Of scores."""
        return len(self._scores)

    def get(self, request: str) -> int | None:
        return self._scores.get(self._key(request))

    def add(self, request: str, score: int) -> None:
        key = self._key(request)
        self._scores[key] = score
        self._file.write(json.dumps({"asked": key, "score": score}) + "\n")
        self._file.flush()

    def _key(self, request: str) -> str:
        data = f"{self._model}\n{request}".encode("utf-8", "surrogatepass")
        return str(xxhash.xxh3_128_hexdigest(data))
