"""Decides how files become documents: WARC, JSONL, Parquet and HTML, sharded over tasks by file.

Task ``rank`` of ``world_size`` reads every world_size-th file. What can't be read is skipped and
counted, and its file is named: damaged stretches of an archive, torn lines, files that are not what
their name says. A page that is still HTML has ``metadata["html"] = True`` until it is extracted.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document

from pretrain.data import decoding
from pretrain.data.warc import BROKEN, MAX_PAGE_BYTES, TOO_LARGE, Page, read_warc
from pretrain.errors import UsageError

_ENDINGS = {
    "warc": (".warc", ".warc.gz", ".wet", ".wet.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".json.gz", ".ndjson"),
    "parquet": (".parquet",),
    "html": (".html", ".htm", ".xhtml"),
}
FORMATS = tuple(_ENDINGS)
_HTML_TYPES = {"text/html", "application/xhtml+xml"}
_FILES_NAMED = 20  # of each kind of damage


def list_files(source: Path, form: str = "auto") -> list[tuple[str, Path]]:
    """(format, file) of everything readable under ``source``, sorted. Raises UsageError."""
    if not source.exists():
        raise UsageError(f"input {source} is not there")
    if form not in ("auto", *FORMATS):
        raise UsageError(f'format "{form}" is not one of auto, {", ".join(FORMATS)}')
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    found = [
        (kind, path)
        for path in paths
        if not path.name.startswith(".")
        if (kind := _format(path)) and form in ("auto", kind)
    ]
    if not found:
        wanted = FORMATS if form == "auto" else (form,)
        endings = ", ".join(end for kind in wanted for end in _ENDINGS[kind])
        raise UsageError(f"input {source} has no file that ends in {endings}: the corpus is empty")
    return found


class Reader:
    """The first step of a pipeline: documents of this task's files, and what was wrong with them.

    ``counts`` are facts of the reading that are no documents ("damaged", "not HTML", "encoding
    detected", "HTTP 404"), ``files`` names the files of each kind of damage.
    """

    def __init__(self, files: list[tuple[str, Path]], root: Path, text_key: str = "text") -> None:
        self.files = files
        self.root = root if root.is_dir() else root.parent
        self.text_key = text_key
        self.counts: Counter[str] = Counter()
        self.damaged_files: dict[str, list[str]] = {}

    def read(self, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents in the order of the files."""
        readers = {"warc": self._warc, "jsonl": self._jsonl, "parquet": self._parquet}
        for kind, path in self.files[rank::world_size]:
            yield from readers.get(kind, self._html)(path)

    def _warc(self, path: Path) -> Iterator[Document]:
        name = self._name(path)
        with open(path, "rb") as file:
            for page in read_warc(file, lambda at: self._damage("damaged", f"{name} after {at}")):
                document = self._from_page(page, name)
                if document:
                    yield document

    def _from_page(self, page: Page, name: str) -> Document | None:
        if page.problem:
            if page.problem in (TOO_LARGE, BROKEN):
                self._damage(page.problem, name)
            else:
                self.counts[page.problem] += 1
            return None
        html = page.type in _HTML_TYPES or (not page.type and b"<" in page.data[:100])
        if not html and page.type != "text/plain":
            self.counts["not text"] += 1
            return None
        metadata = {"url": page.url, "date": page.date, "file_path": name}
        return self._from_bytes(page.data, page.charset, page.id, metadata | {"html": html})

    def _html(self, path: Path) -> Iterator[Document]:
        name = self._name(path)
        metadata = {"url": path.absolute().as_uri(), "file_path": name, "html": True}
        with open(path, "rb") as file:
            data = file.read(MAX_PAGE_BYTES + 1)
        document = self._from_bytes(data, None, name, metadata)
        if document:
            yield document

    def _from_bytes(
        self, data: bytes, charset: str | None, id_: str, metadata: dict[str, Any]
    ) -> Document | None:
        if len(data) > MAX_PAGE_BYTES:
            self._damage(TOO_LARGE, metadata["file_path"])
            return None
        text, how = decoding.decode(data, charset)
        if how in (decoding.DETECTED, decoding.REPLACED):
            self._damage(f"encoding {how}", metadata["file_path"])
        return Document(text=text, id=id_, metadata=metadata)

    def _jsonl(self, path: Path) -> Iterator[Document]:
        name = self._name(path)
        try:
            with _open(path) as file:
                for number, line in enumerate(file):
                    document = self._from_line(line, name, number)
                    if document:
                        yield document
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self._damage("damaged", name)

    def _from_line(self, line: bytes, name: str, number: int) -> Document | None:
        text = line.decode("utf-8", errors="replace")
        try:
            row = json.loads(text)
        except ValueError:
            self._damage("line is not JSON", f"{name} line {number + 1}")
            return None
        if "\ufffd" in text and not _is_utf8(line):
            self._damage(f"encoding {decoding.REPLACED}", name)
        return self._from_row(row, name, number)

    def _parquet(self, path: Path) -> Iterator[Document]:
        import pyarrow.parquet

        name = self._name(path)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=1000)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows):
                    document = self._from_row(row, name, number)
                    if document:
                        yield document
        except (pyarrow.ArrowException, OSError):
            self._damage("damaged", name)

    def _from_row(self, row: Any, name: str, number: int) -> Document | None:
        text = row.get(self.text_key) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text:
            self._damage(f'no text in "{self.text_key}"', name)
            return None
        metadata = row.get("metadata")
        rest = {k: v for k, v in row.items() if k not in (self.text_key, "id", "metadata", "media")}
        metadata = {**rest, **(metadata if isinstance(metadata, dict) else {})}
        metadata.setdefault("file_path", name)
        return Document(text=text, id=str(row.get("id", f"{name}/{number}")), metadata=metadata)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _damage(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        named = self.damaged_files.setdefault(kind, [])
        if len(named) < _FILES_NAMED and where not in named:
            named.append(where)


def _format(path: Path) -> str | None:
    lower = path.name.lower()
    return next((kind for kind, ends in _ENDINGS.items() if lower.endswith(ends)), None)


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
