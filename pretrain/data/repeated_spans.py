"""Decides which long spans of bytes are there twice: ExactSubstr of Lee et al. 2021
(arXiv:2107.06499), on bounded memory.

Every span of at least ``length`` bytes that an earlier place has as well is cut out; the first
place keeps it. A suffix array finds them: where two neighbours in the order of suffixes agree in
``length`` bytes, both places hold the same span.

A suffix array of a whole corpus needs ten times its size. So places are dealt out first: of every
window of ``length`` bytes the smallest hash of its 16-byte pieces is its anchor (winnowing,
Schleimer et al. 2003). Equal windows have equal anchors, whatever stands around them, so it is
enough to compare, within a range of anchors, the windows around anchors that occur twice. The
ranges are as many as the bound on memory asks for, and the spans found do not depend on them.

Memory: ``memory_mb`` for the sort and for one suffix array, the spans found, one document. A
single anchor that occurs more often than fits the bound is handled beyond it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pretrain.data.folders import Row, read_documents
from pretrain.data.shingles import RANDOM, span_hashes
from pretrain.data.spill import Hashes, KeyFile, Records
from pretrain.data.stage import Decide, Drop
from pretrain.errors import UsageError

Places = npt.NDArray[np.int64]

_PIECE = 16  # bytes
_BYTES_PER_BYTE = 48  # of a suffix array with its neighbours' agreement and what is made of it


@dataclass(frozen=True, slots=True)
class RepeatedSpans:
    """Spans of ``length`` bytes or more that an earlier place has; a document is dropped that keeps
    less than ``min_left`` of its bytes."""

    length: int = 200
    min_left: float = 0.2
    memory_mb: int = 256
    name = "repeated_spans"

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Find the spans. Raises UsageError for a setting out of range."""
        if self.length < 2 * _PIECE:
            raise UsageError(f"length is {self.length}: at least {2 * _PIECE} bytes")
        if not 0 <= self.min_left <= 1:
            raise UsageError(f"min_left is {self.min_left}: a share from 0 to 1")
        texts, ends = Records(scratch / "texts"), array("q", [0])
        keys = KeyFile(scratch / "anchors", memory=self.memory_mb * 2**20)
        for row in read_documents(source):
            data = _encode(row["text"])
            texts.append(data)
            anchors, starts = _anchors(np.frombuffer(data, np.uint8), self.length)
            keys.add(anchors, (starts + ends[-1]).astype(np.uint64))
            ends.append(ends[-1] + len(data))
        bounds = np.frombuffer(ends, np.int64)
        starts, stops = self._spans(keys, texts, bounds)

        def decide(number: int, row: Row) -> Drop | None:
            first, last = bounds[number], bounds[number + 1]
            at = slice(np.searchsorted(stops, first, "right"), np.searchsorted(starts, last))
            cuts = np.stack([starts[at], stops[at]], 1) - first
            if not len(cuts):
                return None
            left = cut(_encode(row["text"]), cuts.tolist())
            row["text"] = left.decode("utf-8", "surrogatepass")
            return Drop("repeated_spans") if len(left) < self.min_left * (last - first) else None

        return decide

    def _spans(self, keys: KeyFile, texts: Records, bounds: Places) -> tuple[Places, Places]:
        """Sorted starts and ends, in the bytes of all texts, of what is cut; none touch."""
        most = max(1, self.memory_mb * 2**20 // (2 * self.length * _BYTES_PER_BYTE))
        found = [np.empty(0, np.int64)]
        for sorted_keys, numbers in keys.repeated():
            for starts in _by_anchor(sorted_keys, numbers.astype(np.int64), most):
                found.append(_later_windows(starts, texts, bounds, self.length))
        windows = np.unique(np.concatenate(found))
        own = np.searchsorted(bounds, windows, "right")  # adjoining texts do not run together
        new = np.ones(len(windows), bool)
        new[1:] = (np.diff(windows) > self.length) | (np.diff(own) > 0)
        return windows[new], windows[np.roll(new, -1)] + self.length


def cut(data: bytes, cuts: list[list[int]]) -> bytes:
    """The bytes without the spans, of which characters that are only partly inside stay."""
    kept, position = [], 0
    for start, stop in cuts:
        while start < stop and data[start] & 0xC0 == 0x80:
            start += 1
        while stop > start and stop < len(data) and data[stop] & 0xC0 == 0x80:
            stop -= 1
        kept.append(data[position:start])
        position = stop
    return b"".join([*kept, data[position:]])


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _anchors(data: npt.NDArray[np.uint8], length: int) -> tuple[Hashes, Places]:
    """The anchors of a text's windows, and where each run of windows with the same one starts; a
    run of more windows than pieces in a window is several."""
    if len(data) < length:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    pieces, pieces_in_window = np.arange(len(data) - _PIECE + 1), length - _PIECE + 1
    smallest = span_hashes(RANDOM[data], pieces, pieces + _PIECE)
    span = 1
    while span < pieces_in_window:  # the minimum of twice as many, until there are enough
        step = min(span, pieces_in_window - span)
        smallest = np.minimum(smallest[:-step], smallest[step:])
        span += step
    new = np.ones(len(smallest), bool)
    new[1:] = smallest[1:] != smallest[:-1]
    run_starts = np.flatnonzero(new)
    place_in_run = np.arange(len(smallest)) - np.repeat(
        run_starts, np.diff(np.r_[run_starts, len(smallest)])
    )
    starts = np.flatnonzero(place_in_run % pieces_in_window == 0)
    return smallest[starts], starts


def _by_anchor(keys: Hashes, starts: Places, most: int) -> Iterator[Places]:
    """About ``most`` starts at a time, those of one anchor together."""
    ends = np.r_[np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys)]
    begin = 0
    while begin < len(keys):
        end = int(ends[min(np.searchsorted(ends, begin + most), len(ends) - 1)])
        yield np.sort(starts[begin:end])
        begin = end


def _later_windows(starts: Places, texts: Records, bounds: Places, length: int) -> Places:
    """Starts of windows that an earlier window, not overlapping, equals."""
    from pydivsufsort import divsufsort, kasai

    stops = starts + (length - _PIECE) + length
    stops = np.minimum(stops, bounds[np.searchsorted(bounds, starts, "right")])
    merged = np.ones(len(starts), bool)
    merged[1:] = starts[1:] >= stops[:-1]  # regions that only touch may be of two texts
    regions, lengths = starts[merged], np.diff(np.r_[np.flatnonzero(merged), len(stops)])
    sizes = stops[np.cumsum(lengths) - 1] - regions
    data = np.empty(sizes.sum(), np.uint8)
    spans = (texts.span(int(a), int(n)) for a, n in zip(regions, sizes, strict=True))
    data[:] = np.frombuffer(b"".join(spans), np.uint8)
    offsets = np.cumsum(sizes) - sizes
    suffixes = divsufsort(data)
    agree = kasai(data, suffixes)
    group = np.r_[0, np.cumsum(agree[: len(data) - 1] < length)]
    region = np.searchsorted(offsets, suffixes, "right") - 1
    whole = suffixes + length <= (offsets + sizes)[region]
    place = (regions - offsets)[region[whole]] + suffixes[whole]
    order = np.lexsort((place, group[whole]))
    place, group = place[order], group[whole][order]
    new = np.ones(len(place), bool)
    new[1:] = group[1:] != group[:-1]
    first = place[new][np.cumsum(new) - 1]
    return place[place >= first + length]
