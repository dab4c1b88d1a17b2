"""Decides which documents are the same one again: by address, or byte for byte.

Of equal documents the first stays. Keys are 64-bit xxHash: among n different documents the odds
of any wrong pair are n^2 / 2^65, 1 in 3,700 for 100 million. Memory: ``memory_mb`` for the sort,
and 16 bytes for every duplicate.

Addresses are compared after what does not change the page is taken out: scheme, ``www.``, default
port, fragment, parameters that track the visitor, order of parameters, a slash at the end. A
document without an address has no duplicate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import xxhash

from pretrain.data.folders import Row, read_documents
from pretrain.data.spill import Hashes, KeyFile, Records
from pretrain.data.stage import Decide, Drop

_TRACKING = ("utm_", "mc_")
_TRACKING_NAMES = {"fbclid", "gclid", "dclid", "msclkid", "yclid", "igshid", "ref_src", "_ga"}
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class ExactDuplicates:
    """Documents of equal text, white space at the ends apart."""

    memory_mb: int = 256
    name = "exact_duplicates"

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Find the equal texts."""
        return _first_of_equal(source, scratch, self.memory_mb, lambda row: row["text"].strip())


@dataclass(frozen=True, slots=True)
class UrlDuplicates:
    """Documents of equal address (``metadata.url``)."""

    memory_mb: int = 256
    name = "url_duplicates"

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Find the equal addresses."""
        return _first_of_equal(source, scratch, self.memory_mb, _address)


def _address(row: Row) -> str | None:
    url = (row.get("metadata") or {}).get("url")
    return normal_url(url) if url else None


def normal_url(url: str) -> str:
    """``HTTP://www.Example.org:80/a/?utm_source=x&b=1#top`` -> ``example.org/a?b=1``."""
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
    except ValueError:
        return url  # a broken address equals only itself
    host = (parts.hostname or "").removeprefix("www.")
    parameters = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.lower().startswith(_TRACKING) and name.lower() not in _TRACKING_NAMES
    ]
    query = "?" + urlencode(sorted(parameters)) if parameters else ""
    return f"{host}{port}{parts.path.rstrip('/')}{query}"


def _first_of_equal(
    source: Path, scratch: Path, memory_mb: int, value_of: Callable[[Row], str | None]
) -> Decide:
    """Drop every document whose value an earlier one has."""
    ids, keys = Records(scratch / "ids"), KeyFile(scratch / "keys", memory=memory_mb * 2**20)
    batch: list[tuple[int, int]] = []
    for number, row in enumerate(read_documents(source)):
        ids.append(str(row["id"]).encode())
        value = value_of(row)
        if value is not None:
            batch.append((xxhash.xxh3_64_intdigest(value.encode("utf-8", "replace")), number))
        if len(batch) == _BATCH:
            keys.add(*_columns(batch))
            batch.clear()
    keys.add(*_columns(batch))
    later, first = later_and_first(keys)

    def decide(number: int, row: Row) -> Drop | None:
        at = int(np.searchsorted(later, np.uint64(number)))
        if at == len(later) or later[at] != number:
            return None
        return Drop("duplicate", {"duplicate_of": ids[int(first[at])].decode()})

    return decide


def _columns(pairs: list[tuple[int, int]]) -> tuple[Hashes, Any]:
    table = np.array(pairs, np.uint64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def later_and_first(keys: KeyFile) -> tuple[Hashes, Hashes]:
    """Of every number but the first of its key: the number, sorted, and that first one."""
    later, first = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for sorted_keys, numbers in keys.repeated():
        is_first = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]][: len(sorted_keys)]
        firsts = numbers[is_first][np.cumsum(is_first) - 1]
        later.append(numbers[~is_first])
        first.append(firsts[~is_first])
    all_later, all_first = np.concatenate(later), np.concatenate(first)
    order = np.argsort(all_later)
    return all_later[order], all_first[order]
