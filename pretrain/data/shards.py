"""Decides what tokenised shards are on the disk, and reads them.

    manifest.json                  format, tokenizer, end token, counts, a checksum of every file
    tokenizer/                     the tokenizer itself
    LANGUAGE/DOMAIN/NNNNN.ids      token ids, little-endian uint16 or uint32, documents end to end,
                                   each followed by the end token
    LANGUAGE/DOMAIN/NNNNN.offsets  uint64 [documents + 1]: where each document starts, in tokens

A language and a domain together are a *source*, what the stream mixes. The tokens of a source are
the files' one after another, read through memory maps: opening costs nothing, and neither does
where one reads. The folder appears under its name when it is whole (``shard_writer.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import UsageError
from pretrain.tokenizer_files import difference, read_tokenizer

FORMAT = 1
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
_CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class ShardFile:
    """Ids and offsets of one source that come from one file of documents."""

    stem: Path  # without .ids and .offsets
    dtype: str
    documents: int
    tokens: int

    @cached_property
    def ids(self) -> NDArray[Any]:
        """[tokens], mapped."""
        return np.memmap(f"{self.stem}.ids", self.dtype, mode="r", shape=(self.tokens,))

    @cached_property
    def offsets(self) -> NDArray[np.uint64]:
        """[documents + 1], mapped."""
        return np.memmap(f"{self.stem}.offsets", "<u8", mode="r", shape=(self.documents + 1,))

    def starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where in ``start..stop-1`` a document begins."""
        first, last = np.searchsorted(self.offsets[:-1], np.array([start, stop], np.uint64))
        return np.asarray(self.offsets[first:last], np.int64)


class TokenSource:
    """The tokens of one language and domain, as one long sequence of documents."""

    def __init__(self, name: str, files: Sequence[ShardFile]) -> None:
        self.name = name
        self.documents = sum(file.documents for file in files)
        self.tokens = sum(file.tokens for file in files)
        self._files = list(files)
        self._ends = np.cumsum([file.tokens for file in files])

    def read(self, start: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids [length] from ``start`` on, and where among them documents begin."""
        ids = np.empty(length, np.int64)
        starts, done = [], 0
        n = int(np.searchsorted(self._ends, start, side="right"))
        while done < length:
            file = self._files[n]
            here = start + done - int(self._ends[n] - file.tokens)
            taken = min(length - done, file.tokens - here)
            ids[done : done + taken] = file.ids[here : here + taken]
            starts.append(file.starts(here, here + taken) - here + done)
            done, n = done + taken, n + 1
        return ids, np.concatenate(starts)

    def document(self, number: int) -> NDArray[np.int64]:
        """Ids of one document, end token included. Raises IndexError."""
        for file in self._files if number >= 0 else ():
            if number < file.documents:
                start, stop = (int(place) for place in file.offsets[number : number + 2])
                return np.asarray(file.ids[start:stop], np.int64)
            number -= file.documents
        raise IndexError(f"{self.name} has {self.documents} documents")


class Shards:
    """A folder of tokenised shards."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        tokenizer = manifest["tokenizer"]
        self.fingerprint: str = tokenizer["fingerprint"]
        self.vocabulary: int = tokenizer["vocabulary"]  # rows that an embedding needs
        self.end_id: int = tokenizer["end_id"]
        self.files = {
            name: [
                ShardFile(folder / one["stem"], manifest["dtype"], one["documents"], one["tokens"])
                for one in source["files"]
            ]
            for name, source in manifest["sources"].items()
        }

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Shards:
        """Raises UsageError for what is no folder of shards, or one that is not as it was written.

        Sizes are always compared; with ``verify`` every byte is read and its checksum compared.
        """
        shards = cls(Path(folder), _manifest(Path(folder)))
        shards._check(verify)
        return shards

    @property
    def tokens(self) -> int:
        return sum(file.tokens for files in self.files.values() for file in files)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that made the ids."""
        return self.folder / TOKENIZER

    def check_tokenizer(self, folder: str | Path) -> None:
        """Raises UsageError, with the reason, when the tokenizer is another than the shards'."""
        other = read_tokenizer(folder)
        if other.fingerprint != self.fingerprint:
            reason = difference(read_tokenizer(self.tokenizer), other)
            raise UsageError(f"{self.folder} was made with another tokenizer: {reason}")

    def _check(self, verify: bool) -> None:
        width = np.dtype(self.manifest["dtype"]).itemsize
        for source in self.manifest["sources"].values():
            for one in source["files"]:
                sizes = {"ids": one["tokens"] * width, "offsets": 8 * (one["documents"] + 1)}
                for kind, size in sizes.items():
                    path = self.folder / f"{one['stem']}.{kind}"
                    if reason := _fault(path, size, one[kind] if verify else ""):
                        raise UsageError(f"{path} is not as it was written: {reason}")


def _fault(path: Path, size: int, checksum: str) -> str:
    if not path.is_file():
        return "it is missing"
    if (found := path.stat().st_size) != size:
        return f"it has {found} bytes, not {size}"
    if checksum and checksum_of(path) != checksum:
        return "its checksum is another"
    return ""


def checksum_of(path: Path) -> str:
    """XXH3, 128 bits: it finds damage at the speed of memory, not forgery."""
    from xxhash import xxh3_128

    state = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return str(state.hexdigest())


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no tokenised shards: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error!r}") from error
    if found != FORMAT:
        raise UsageError(f"{path} has format {found}; this version reads format {FORMAT}")
    return dict(manifest)


def join(folders: Iterable[Shards]) -> dict[str, TokenSource]:
    """Sources of several folders, by name; those of one name are read one after another.

    Raises UsageError when the folders are of different tokenizers.
    """
    opened = list(folders)
    for shards in opened[1:]:
        if shards.fingerprint != opened[0].fingerprint or shards.end_id != opened[0].end_id:
            shards.check_tokenizer(opened[0].tokenizer)
            raise UsageError(f"{shards.folder} and {opened[0].folder} have other end tokens")
    names = sorted({name for shards in opened for name in shards.files})
    return {
        name: TokenSource(name, [file for one in opened for file in one.files.get(name, [])])
        for name in names
    }
