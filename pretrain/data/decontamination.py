"""Decides which documents hold an item of an evaluation set and must not be trained on.

An item (any text column of a row) is found by either of two signs:

``words``    13 words in a row in common, whatever the case and punctuation (GPT-3's appendix C,
             arXiv:2005.14165); an item of 4 to 12 words counts when all of it is there
``letters``  60 letters and digits in a row in common once everything else is taken out: other
             spacing, hyphens, line breaks inside words

Shorter items say nothing and are not looked for. Fine-tuning data is checked by the same two rules
and a third one for rephrased items, which takes too long for a corpus.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.shingles import mix, span_hashes
from pretrain.data.spill import Hashes
from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

N_WORDS = 13
N_LETTERS = 60
_FEWEST_WORDS = 4
_WORD = re.compile(r"\w+")
Item = tuple[str, int]  # evaluation set, number of the row


class Decontaminate:
    """``against``: evaluation sets by name, a file of rows each (JSONL, JSON, CSV, Parquet or text,
    one item a line) or the texts themselves."""

    name = "decontaminate"

    def __init__(self, against: Mapping[str, str | Path | Iterable[str]]):
        """Raises UsageError for a file that is not there, can't be read or holds no text."""
        if not against:
            raise UsageError("against is empty: name the evaluation sets to look for")
        self._grams: dict[int, dict[tuple[str, ...], Item]] = {N_WORDS: {}}  # by number of words
        letters: dict[int, Item] = {}
        for name, source in against.items():
            items = _rows(Path(source)) if isinstance(source, str | Path) else enumerate(source)
            for number, text in items:
                self._add((name, number), text, letters)
        self._letters = np.array(sorted(letters), np.uint64)
        self._items = [letters[int(one)] for one in self._letters]

    def check(self, document: Document) -> str | None:
        """``contaminated``; ``metadata.contamination`` says with what and by which sign."""
        found = self.find(document.text)
        if found is None:
            return None
        (name, number), sign = found
        document.metadata["contamination"] = {"set": name, "item": number, "sign": sign}
        return "contaminated"

    def find(self, text: str) -> tuple[Item, str] | None:
        """The first item found, and the sign."""
        words = _WORD.findall(text.lower())
        for n, known in self._grams.items():
            for gram in _grams(words, n):
                if gram in known:
                    return known[gram], "words"
        hashes = _letter_hashes(words)
        at = np.minimum(np.searchsorted(self._letters, hashes), len(self._letters) - 1)
        hits = np.flatnonzero(self._letters[at] == hashes) if len(self._letters) else at[:0]
        return (self._items[int(at[hits[0]])], "letters") if len(hits) else None

    def _add(self, item: Item, text: str, letters: dict[int, Item]) -> None:
        words = _WORD.findall(text.lower())
        if len(words) < _FEWEST_WORDS:
            return
        n = min(len(words), N_WORDS)
        for gram in _grams(words, n):
            self._grams.setdefault(n, {}).setdefault(gram, item)
        for one in _letter_hashes(words).tolist():
            letters.setdefault(one, item)


def _grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _letter_hashes(words: list[str]) -> Hashes:
    """A hash of every run of 60 letters and digits."""
    letters = "".join(words).replace("_", "")
    points = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32)
    starts = np.arange(max(0, len(points) - N_LETTERS + 1))
    return span_hashes(mix(points.astype(np.uint64)), starts, starts + N_LETTERS)


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """(number of the row, text) of every text column."""
    if not path.is_file():
        raise UsageError(f"the evaluation set {path} is not there")
    found = False
    for number, row in enumerate(_read(path)):
        values = row.values() if isinstance(row, dict) else [row]
        for text in (value for value in values if isinstance(value, str) and value.strip()):
            found = True
            yield number, text
    if not found:
        raise UsageError(f"the evaluation set {path} holds no text")


def _read(path: Path) -> Iterable[Any]:
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        if kind == "parquet":
            import pyarrow.parquet as parquet

            rows: list[Any] = parquet.read_table(path).to_pylist()
            return rows
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        if kind == "json":
            value = json.loads(text)
            return value if isinstance(value, list) else [value]
        if kind == "csv":
            return list(csv.DictReader(text.splitlines(keepends=True)))
        lines = [line for line in text.split("\n") if line.strip()]
        return [json.loads(line) for line in lines] if kind in ("jsonl", "ndjson") else lines
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"the evaluation set {path} can't be read: {error}") from error
