"""Decides how one file of documents becomes tokens: pairs of files that grow, and a record.

The record is written last, when the others are on the disk. Whatever goes wrong before it, the
files are removed.

Special tokens in a document are text: a page that spells ``<|endoftext|>`` must not end a document.
``read_special`` reads them as tokens, for corpora that were rendered with a chat template.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field

from pretrain.checked_settings import CheckedSettings
from pretrain.data import fim
from pretrain.data.documents import numbered_documents
from pretrain.data.fim import FimSettings
from pretrain.errors import RunError
from pretrain.tokenizer_files import TokenizerFiles, read_tokenizer

_BATCH = 1 << 20  # characters that are tokenised together
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$"
_SOURCES = 256  # of one file; more are no languages and domains but something like host names


class ShardSettings(CheckedSettings):
    """How documents become tokens."""

    tokenizer: str = Field(min_length=1, description="folder")
    language: str = Field(
        default="unknown", pattern=_NAME, description="of documents that don't say theirs"
    )
    domain: str = Field(default="text", pattern=_NAME, description="likewise")
    end_token: str = Field(default="", description='"": the one the tokenizer names')
    read_special: bool = Field(
        default=False, description="special tokens in a document are tokens, not text"
    )
    fim: FimSettings | None = Field(default=None, description="fill-in-the-middle")
    seed: int = 0
    processes: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Task:
    """One file of documents, and where its tokens go."""

    documents: Path
    out: Path
    settings: ShardSettings

    @property
    def shard(self) -> str:
        return self.documents.name.removesuffix(".jsonl.gz")

    @property
    def record(self) -> Path:
        return self.out / "records" / f"{self.shard}.json"


def input_of(path: Path) -> list[int]:
    """Changes when the file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def tokenise(task: Task) -> None:
    """One file of documents; its record is written last."""
    shard = _OneShard(task)
    try:
        for batch in _batches(task.documents):
            shard.add(batch)
        record = shard.finish()
        write_whole(task.record, json.dumps(record))
    except OSError as error:
        shard.remove()  # makes room, too
        raise RunError(
            f"can't tokenise {task.documents}: {error.strerror or error}; the files "
            "that are done are kept, and the same command goes on"
        ) from error
    except BaseException:
        shard.remove()
        raise


Document = tuple[int, dict[str, Any]]  # its line, counted from 1, and what stands there


def _batches(path: Path) -> Iterator[list[Document]]:
    """Documents in batches of bounded size."""
    batch: list[Document] = []
    characters = 0
    for line, document in numbered_documents(path):
        characters += len(document["text"])
        batch.append((line, document))
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    yield batch


class _OneShard:
    """The files that grow while one file of documents is tokenised."""

    def __init__(self, task: Task) -> None:
        self._task = task
        files = _tokenizer(task.settings.tokenizer, task.settings.read_special)
        self._tokenizer = files.tokenizer
        self._end = files.id_of(files.end_token(task.settings.end_token), "the end token")
        self._dtype = dtype_for(files.rows)
        wanted = task.settings.fim
        self._fim_tokens = fim.token_ids(wanted, files) if wanted else (0, 0, 0)
        self._growing: dict[tuple[str, str], _Growing] = {}
        self._empty = self._read = self._characters = 0

    def add(self, batch: list[Document]) -> None:
        kept = [(line, document) for line, document in batch if document["text"]]
        self._read += len(batch)
        self._empty += len(batch) - len(kept)
        sources = [self._source(line, document) for line, document in kept]
        cuts = [
            self._cut(line, document["text"], source[1])
            for (line, document), source in zip(kept, sources, strict=True)
        ]
        texts = [
            part
            for cut, (_, document) in zip(cuts, kept, strict=True)
            for part in (cut.parts if cut else (document["text"],))
        ]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for source, cut, (_, document) in zip(sources, cuts, kept, strict=True):
            parts = [next(encoded).ids for _ in range(3 if cut else 1)]
            ids = fim.joined(cut, parts, self._fim_tokens) if cut else parts[0]
            growing = self._open(source)
            growing.add(np.array([*ids, self._end], self._dtype), len(document["text"]), bool(cut))

    def _source(self, line: int, document: dict[str, Any]) -> tuple[str, str]:
        metadata, settings = document["metadata"], self._task.settings
        found = metadata.get("language") or settings.language, metadata.get("domain")
        language, domain = str(found[0]), str(found[1] or settings.domain)
        for name in (language, domain):
            if not re.fullmatch(_NAME, name):
                raise RunError(
                    f"{self._task.documents}, line {line}: {name!r} is no name of a language or "
                    "domain (up to 64 of a-z, 0-9, . _ + -)"
                )
        return language, domain

    def _cut(self, line: int, text: str, domain: str) -> fim.Cut | None:
        settings = self._task.settings
        if settings.fim is None or domain not in settings.fim.domains:
            return None
        return fim.cut(text, settings.fim, f"{settings.seed}/{self._task.shard}/{line}")

    def _open(self, source: tuple[str, str]) -> _Growing:
        if source not in self._growing:
            if len(self._growing) == _SOURCES:
                raise RunError(
                    f"{self._task.documents}: over {_SOURCES} pairs of language and domain; a "
                    f"domain is a kind of text, such as web or code, not {source[1]!r}"
                )
            stem = "/".join((*source, self._task.shard))
            self._growing[source] = _Growing(self._task.out, stem)
        return self._growing[source]

    def finish(self) -> dict[str, Any]:
        """Everything on the disk; what the manifest wants to know."""
        sources = {"/".join(source): one.finish() for source, one in self._growing.items()}
        return {
            "input": input_of(self._task.documents),
            "read": self._read,
            "empty": self._empty,
            "sources": sources,
        }

    def remove(self) -> None:
        for growing in self._growing.values():
            growing.remove()


class _Growing:
    """Ids and offsets of one source; checksums grow with them."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._stem = folder / stem
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        self.counts: Counter[str] = Counter()
        self._ids, self._offsets = _Hashed(f"{self._stem}.ids"), _Hashed(f"{self._stem}.offsets")
        self._name = stem
        self._offsets.write(np.zeros(1, "<u8").tobytes())

    def add(self, ids: np.ndarray, characters: int, is_cut: bool) -> None:
        added = {"documents": 1, "tokens": len(ids), "characters": characters, "fim": int(is_cut)}
        self.counts.update(added)
        self._ids.write(ids.tobytes())
        self._offsets.write(np.array([self.counts["tokens"]], "<u8").tobytes())

    def finish(self) -> dict[str, Any]:
        checksums = {"ids": self._ids.finish(), "offsets": self._offsets.finish()}
        sync_folder(self._stem.parent)
        return {"stem": self._name, **self.counts, **checksums}

    def remove(self) -> None:
        self._ids.remove()
        self._offsets.remove()


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, path: str) -> None:
        from xxhash import xxh3_128

        self._path = path
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - open for long
        self._hash = xxh3_128()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return str(self._hash.hexdigest())

    def remove(self) -> None:
        try:
            self._file.close()
        except OSError:  # what is buffered may not fit; it is not wanted any more
            pass
        Path(self._path).unlink(missing_ok=True)


@cache
def _tokenizer(folder: str, read_special: bool) -> TokenizerFiles:
    files = read_tokenizer(folder)
    files.tokenizer.encode_special_tokens = not read_special
    return files


def dtype_for(rows: int) -> str:
    """The smallest type that holds ids 0..rows-1."""
    return "<u2" if rows <= 1 << 16 else "<u4"


def write_whole(path: Path, text: str) -> None:
    """The file with all of its text, or as it was before."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename or a new file in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
