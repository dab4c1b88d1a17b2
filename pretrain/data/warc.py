"""Decides how WARC files are read when they are damaged, and how small ones are written.

A WARC is usually gzip with one member for each record, so damage is local: the reader looks for the
next member (or the next ``WARC/1.`` line in an uncompressed file) and goes on from there. Each
damaged stretch is reported once, with its offset.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

_GZIP_MEMBER = b"\x1f\x8b\x08"
_PLAIN_RECORD = b"WARC/1."
_KINDS = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Page:
    """One record with a payload."""

    url: str
    id: str  # WARC-Record-ID without its brackets
    date: str
    type: str  # media type, lower case, without parameters; "" when it is not said
    charset: str | None  # of the HTTP header
    data: bytes


def read_warc(file: BinaryIO, damaged: Callable[[int], object]) -> Iterator[Page]:
    """Pages of a seekable file; ``damaged`` gets the offset of every stretch that is skipped."""
    marker = _GZIP_MEMBER if file.read(2) == _GZIP_MEMBER[:2] else _PLAIN_RECORD
    start, reported = 0, -1
    while start >= 0:
        file.seek(start)
        last = start
        try:
            for record in ArchiveIterator(file, parse_http=True):
                last = start + record.stream_pos if marker == _PLAIN_RECORD else record.stream_pos
                page = _page(record)
                if page is None:
                    raise OSError("record is cut short")
                reported = -1
                if record.record_type & _KINDS:
                    yield page
            if marker == _GZIP_MEMBER and _ends_inside_member(file, last + 1):
                damaged(last)
            return
        except (OSError, ValueError, EOFError):
            # A run of damage is one stretch: until a page was read again.
            if reported < 0:
                damaged(last)
                reported = last
            start = _find(file, marker, max(last, start) + 1)


def write_warc(path: Path, pages: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> int:
    """Write ``(url, body, HTTP headers)`` as response records, one gzip member each.

    Returns their number. The file is under its name when it is whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    written = 0
    with open(temporary, "wb") as file:
        for url, body, headers in pages:
            record = WarcRecord()
            record.init_headers(WarcRecordType.response)
            record.headers["WARC-Target-URI"] = url
            record.headers["Content-Type"] = "application/http; msgtype=response"
            lines = [f"{key}: {value}" for key, value in headers.items()]
            head = "\r\n".join(["HTTP/1.1 200 OK", *lines, f"Content-Length: {len(body)}", "", ""])
            record.set_bytes_content(head.encode("latin-1") + body)
            member = GzipWriter(file, compression_level=6)
            record.write(member)
            member.finish()
            written += 1
    temporary.replace(path)
    return written


def _page(record: WarcRecord) -> Page | None:
    """None when the record is not whole."""
    length = int(record.headers.get("Content-Length") or -1)
    expected = record.content_length
    data = record.reader.read()
    if length < 0 or len(data) < expected:
        return None
    type_ = record.headers.get("WARC-Identified-Payload-Type") or record.http_content_type
    if not type_ and not record.is_http:
        type_ = record.headers.get("Content-Type")
    return Page(
        url=record.headers.get("WARC-Target-URI") or "",
        id=(record.headers.get("WARC-Record-ID") or "").strip("<>"),
        date=record.headers.get("WARC-Date") or "",
        type=(type_ or "").split(";")[0].strip().lower(),
        charset=record.http_charset if record.is_http else "utf-8",
        data=data,
    )


def _ends_inside_member(file: BinaryIO, start: int) -> bool:
    """Whether a member begins at or after ``start`` that the file does not hold to its end: one
    that is cut before its record's headers looks to fastwarc like the end of the file."""
    found = _find(file, _GZIP_MEMBER, start)
    if found < 0:
        return False
    file.seek(found)
    member = zlib.decompressobj(wbits=31)
    try:
        member.decompress(file.read(_BLOCK), _BLOCK)
    except zlib.error:  # three bytes that only look like a member
        return False
    return not member.eof


def _find(file: BinaryIO, marker: bytes, start: int) -> int:
    """Offset of the next marker at or after ``start``; -1 when there is none."""
    file.seek(start)
    tail = b""
    while block := file.read(_BLOCK):
        found = (tail + block).find(marker)
        if found >= 0:
            return start - len(tail) + found
        tail = (tail + block)[-len(marker) + 1 :]
        start = file.tell()
    return -1
