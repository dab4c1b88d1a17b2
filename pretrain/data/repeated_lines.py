"""Decides which lines are boilerplate: those that many documents, or many hosts, have.

A line (or paragraph: what blank lines part) is known by its words, case and numbers apart: "Page 3
of 12" is "page 0 of 0" (CCNet, arXiv:1911.00359, compares paragraphs so). One that at least
``minimum`` documents or hosts have is taken out everywhere, the first time included: a menu has no
best copy. A document of which too little is left is dropped.

Memory: ``memory_mb`` for the sort and 8 bytes for each such line; a single line that more
documents have than fit the bound is sorted beyond it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import xxhash

from pretrain.data.folders import Row, read_documents
from pretrain.data.spill import Hashes, KeyFile
from pretrain.data.stage import Decide, Drop
from pretrain.errors import UsageError

_SEPARATORS = {"line": "\n", "paragraph": "\n\n"}
_ACROSS = ("documents", "hosts")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class RepeatedLines:
    """Lines or paragraphs that ``minimum`` documents or hosts have. Short ones count, too, where
    they have ``min_characters``; a document is dropped that keeps less than ``min_left`` of its
    characters."""

    minimum: int = 6
    unit: str = "line"  # or paragraph
    across: str = "documents"  # or hosts, from metadata.url
    min_characters: int = 1
    min_left: float = 0.2
    memory_mb: int = 256
    name = "repeated_lines"

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Find the repeated lines. Raises UsageError for a setting out of range."""
        self._check()
        keys = KeyFile(scratch / "lines", memory=self.memory_mb * 2**20)
        owner_of = _host if self.across == "hosts" else None
        for number, row in enumerate(read_documents(source)):
            hashes = np.unique(np.array(self._hashes(row["text"]), np.uint64))
            hashes = hashes[hashes != 0]
            owner = owner_of(row) if owner_of else number
            keys.add(hashes, np.full(len(hashes), owner, np.uint64))
        repeated = repeated_keys(keys, self.minimum)
        return lambda number, row: self._remove(row, repeated)

    def _check(self) -> None:
        if self.unit not in _SEPARATORS:
            raise UsageError(f'unit is "{self.unit}": line or paragraph')
        if self.across not in _ACROSS:
            raise UsageError(f'across is "{self.across}": documents or hosts')
        if self.minimum < 2:
            raise UsageError(f"minimum is {self.minimum}: at least 2, or every line is repeated")
        if not 0 <= self.min_left <= 1:
            raise UsageError(f"min_left is {self.min_left}: a share from 0 to 1")

    def _pieces(self, text: str) -> list[str]:
        return text.split("\n") if self.unit == "line" else _BLANK_LINES.split(text)

    def _hashes(self, text: str) -> list[int]:
        """One for each piece; 0 for a piece that is not compared."""
        return [
            _hash(piece) if len(piece) >= self.min_characters else 0 for piece in self._pieces(text)
        ]

    def _remove(self, row: Row, repeated: Hashes) -> Drop | None:
        hashes = np.array(self._hashes(row["text"]), np.uint64)
        at = np.searchsorted(repeated, hashes)
        is_repeated = np.r_[repeated, np.uint64(0)][at] == hashes
        is_repeated &= hashes != 0
        if not is_repeated.any():
            return None
        pieces = zip(self._pieces(row["text"]), is_repeated, strict=True)
        left = _SEPARATORS[self.unit].join(piece for piece, again in pieces if not again)
        before = len(row["text"])
        row["text"] = left.strip("\n")
        return Drop("repeated_lines") if len(row["text"]) < self.min_left * before else None


def _hash(piece: str) -> int:
    words = " ".join(_WORD.findall(_NUMBER.sub("0", piece.lower())))
    return xxhash.xxh3_64_intdigest(words.encode("utf-8", "replace")) if words else 0


def _host(row: Row) -> int:
    """Documents without an address are one host."""
    url = str((row.get("metadata") or {}).get("url") or "")
    return xxhash.xxh3_64_intdigest(urlsplit(url).netloc.lower().removeprefix("www.").encode())


def repeated_keys(keys: KeyFile, minimum: int) -> Hashes:
    """The keys that at least ``minimum`` different numbers have, sorted."""
    found = [np.empty(0, np.uint64)]
    for sorted_keys, numbers in keys.repeated():
        order = np.lexsort((numbers, sorted_keys))
        one, owner = sorted_keys[order], numbers[order]
        new = np.ones(len(one), bool)
        new[1:] = (one[1:] != one[:-1]) | (owner[1:] != owner[:-1])
        values, times = np.unique(one[new], return_counts=True)
        found.append(values[times >= minimum])
    return np.sort(np.concatenate(found))
