"""Decides which documents are nearly the same: MinHash to find candidates, Jaccard to be sure.

1. Every document's shingles (runs of five words) are spilled, and signed with ``bands`` x ``rows``
   MinHashes (Broder 1997; the signatures are rensa's, of fast similarity sketching,
   arXiv:1704.04370).
2. Documents that agree in all rows of any band are candidates (locality-sensitive hashing): of
   similarity s with probability 1 - (1 - s^rows)^bands, for 16 x 8 that is 95 % at 0.8, 99.99 % at
   0.9 and 6 % at 0.5. Band keys are grouped by an external sort.
3. A candidate pair counts when the Jaccard similarity of its sets of shingles is at least
   ``threshold``. So no pair is wrong, whatever the signatures say.
4. Pairs make clusters (union-find), the first document of a cluster stays. A cluster is a chain:
   its ends may be less alike than ``threshold``, which the ``similarity`` to the document that
   stays, kept with each reject, shows.

In a band where more than ``LARGEST_GROUP`` documents meet, each is compared with the first and the
``LARGEST_GROUP`` before it, so that boilerplate does not cost the square of its number.

Memory: ``memory_mb`` for the sort, 8 bytes per document for the clusters, one batch. Disk: 16 x 16
bytes per document for the bands, 8 per word for the shingles.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pretrain.data.folders import Row, read_documents
from pretrain.data.shingles import jaccard, shingles_of
from pretrain.data.spill import Hashes, KeyFile, Records, groups
from pretrain.data.stage import Decide, Drop
from pretrain.errors import UsageError

LARGEST_GROUP = 50
_BATCH_CHARACTERS = 500_000


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Documents that share most of their shingles. ``words`` per shingle."""

    threshold: float = 0.8
    bands: int = 16
    rows: int = 8
    words: int = 5
    memory_mb: int = 256
    seed: int = 1
    name = "near_duplicates"

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Find the clusters. Raises UsageError for a setting out of range."""
        if not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}: a similarity above 0, at most 1")
        if min(self.bands, self.rows, self.words, self.memory_mb) < 1:
            raise UsageError("bands, rows, words and memory_mb must be at least 1")
        shingles, ids = Records(scratch / "shingles"), Records(scratch / "ids")
        keys = KeyFile(scratch / "bands", memory=self.memory_mb * 2**20)
        for batch in _batches(read_documents(source)):
            self._add(batch, shingles, keys)
            for row in batch:
                ids.append(str(row["id"]).encode())
        clusters = Clusters(len(ids))
        for a, b, _ in verified_pairs(keys, shingles, self.threshold, clusters):
            clusters.join(a, b)

        def decide(number: int, row: Row) -> Drop | None:
            first = clusters.first(number)
            if first == number:
                return None
            similarity = jaccard(_read(shingles, first), _read(shingles, number))
            details = {"duplicate_of": ids[first].decode(), "similarity": round(similarity, 4)}
            return Drop("near_duplicate", details)

        return decide

    def _add(self, batch: list[Row], shingles: Records, keys: KeyFile) -> None:
        start = len(shingles)
        sets = shingles_of([row["text"] for row in batch], self.words)
        for one in sets:
            shingles.append(one.tobytes())
        some = np.array([i for i, one in enumerate(sets) if len(one)], np.uint64)
        if len(some):
            signatures = signatures_of(
                [sets[int(i)] for i in some], self.bands * self.rows, self.seed
            )
            for band in range(self.bands):
                rows = signatures[:, band * self.rows : (band + 1) * self.rows]
                keys.add(_band_keys(rows, band), some + np.uint64(start))


def signatures_of(sets: list[Hashes], n: int, seed: int) -> np.ndarray:
    """``n`` MinHashes of each set, none of them empty: uint32 [sets, n]."""
    import rensa

    ends = np.cumsum([len(one) for one in sets], dtype=np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(sets), np.r_[np.uint64(0), ends], n, seed
    )
    return np.array(matrix.to_rows(), np.uint32)


def verified_pairs(
    keys: KeyFile, shingles: Records, threshold: float, clusters: Clusters
) -> Iterator[tuple[int, int, float]]:
    """Candidates (a < b) that are alike, with their similarity; not those already clustered."""
    read = lru_cache(2 * LARGEST_GROUP)(partial(_read, shingles))
    for a, b in _candidates(keys):
        if clusters.first(a) != clusters.first(b):
            similarity = jaccard(read(a), read(b))
            if similarity >= threshold:
                yield a, b, similarity


def _candidates(keys: KeyFile) -> Iterator[tuple[int, int]]:
    """Pairs (a < b) that meet in a band; the same pair may come from several."""
    for sorted_keys, numbers in keys.repeated():
        for group in groups(sorted_keys, numbers):
            members = group.tolist()
            for i, b in enumerate(members[1:], 1):
                earlier = members[max(0, i - LARGEST_GROUP) : i]
                yield from ((a, b) for a in dict.fromkeys([members[0], *earlier]))


class Clusters:
    """Union-find over document numbers; the smallest of a cluster stands for it."""

    def __init__(self, n: int):
        self._parent = array("q", range(n))

    def first(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, a: int, b: int) -> None:
        first, later = sorted((self.first(a), self.first(b)))
        self._parent[later] = first


def _read(shingles: Records, number: int) -> Hashes:
    return np.frombuffer(shingles[number], np.uint64)


def _band_keys(rows: np.ndarray, band: int) -> Hashes:
    """One hash of all rows of a band; equal rows in different bands do not meet."""
    keys = np.full(len(rows), band, np.uint64)
    for column in rows.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row["text"])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
