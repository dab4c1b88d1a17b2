"""Decides what a folder of documents is, between two stages, and how one comes to be.

A folder holds shards ``00000.jsonl.gz``, ``00001.jsonl.gz``, ... of documents in datatrove's JSON
lines form (``{"text", "id", "metadata"}``) and ``counts.json``, which is written last: a folder
without it is no finished stage. A document's number is its place, shards in order of name.

A stage writes its folder beside its place under a hidden name and renames it when it is complete,
so a run that is killed at any moment leaves nothing half-written under a final name.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from pretrain.data.documents import numbered_documents
from pretrain.errors import RunError, UsageError
from pretrain.new_folder import new_folder

Row = dict[str, Any]  # {"text": str, "id": str, "metadata": dict}

COUNTS = "counts.json"
_SHARD = re.compile(r"\d+\.jsonl\.gz")
_LEVEL = 1  # of gzip: the next stage reads it once, and level 6 takes three times as long
_END_OF_GZIP = 8  # bytes: CRC-32 and length of what was packed


def shards_of(folder: Path) -> list[Path]:
    """The shards in order. Raises UsageError for a folder that no stage has finished."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    shards = sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if not shards:
        raise UsageError(
            f"{folder} holds no shard (00000.jsonl.gz, ...): it is no output of a stage"
        )
    if not (folder / COUNTS).is_file():
        raise UsageError(f"{folder} has no {COUNTS}: the stage that writes it has not finished")
    return shards


def read_shard(shard: Path) -> Iterator[Row]:
    """The documents of one shard. Raises RunError, naming file and line, for what is none."""
    for line, row in numbered_documents(shard):
        if "id" not in row:
            raise RunError(f"{shard}, line {line}: a document without id")
        yield row


def read_documents(folder: Path) -> Iterator[Row]:
    """Every document in order."""
    for shard in shards_of(folder):
        yield from read_shard(shard)


class ShardWriter:
    """Documents into one shard."""

    def __init__(self, path: Path):
        self._raw = path.open("wb")
        # Neither name nor time in the header: equal documents make equal bytes.
        self._file = gzip.GzipFile("", "wb", _LEVEL, self._raw, mtime=0)

    def write(self, row: Row) -> None:
        try:
            line = json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # lone surrogates, which JSON may hold and UTF-8 may not
            line = json.dumps(row).encode()
        self._file.write(line + b"\n")

    def close(self) -> None:
        self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()


def write_documents(folder: Path, rows: list[Row], *, per_shard: int = 10_000) -> None:
    """A small folder of documents made by hand, as input of a first stage."""
    with new_folder(folder) as aside:
        for start in range(0, max(len(rows), 1), per_shard):
            writer = ShardWriter(aside / f"{start // per_shard:05d}.jsonl.gz")
            for row in rows[start : start + per_shard]:
                writer.write(row)
            writer.close()
        characters = sum(len(row["text"]) for row in rows)
        counts = {"stage": "given", "in": len(rows), "kept": len(rows)}
        counts |= {"characters_in": characters, "characters_kept": characters}
        counts |= {"dropped": {}, "by_language": {}, "examples": {}}
        (aside / COUNTS).write_text(json.dumps(counts, indent=1))


def fingerprint(folder: Path) -> str:
    """Changes when a document does: names, sizes and the check sums at the shards' ends."""
    seen = xxhash.xxh3_64()
    for shard in shards_of(folder):
        with shard.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_OF_GZIP))
            seen.update(f"{shard.name} {size} ".encode() + file.read())
    return seen.hexdigest()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder for what a stage spills; gone afterwards."""
    scratch = parent / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
