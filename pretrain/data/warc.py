"""Decides how WARC files are read when they are damaged, and how small ones are written.

A WARC is usually gzip with one member for each record, so damage is local: the reader looks for the
next member (or the next ``WARC/1.`` line in an uncompressed file) and goes on from there. Each
damaged stretch is reported once, with its offset. A cut member of which fastwarc gives nothing is
read up to the cut: it may be an archive that was packed as one.

A page is the body of an HTTP answer with status 200, without its chunks (``Transfer-Encoding``) and
unpacked (``Content-Encoding``: gzip, deflate, br, zstd), or a record that is no HTTP. Whether a
record is whole is judged before that, by its own length.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

MAX_PAGE_BYTES = 10_000_000
TOO_LARGE, BROKEN, NO_STATUS = "larger than 10 MB", "content encoding broken", "no HTTP status"
_HEAD_BYTES = 1 << 16  # more than an HTTP head that fastwarc reads
_GZIP_MEMBER = b"\x1f\x8b\x08"
_PLAIN_RECORD = b"WARC/1."
_KINDS = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
_RECORD = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
_HTTP = b"application/http; msgtype=response"
_STILL_ENCODED = re.compile(rb"\s*[0-9A-Fa-f]+\s*(?:;[^\r\n]*)?\r\n|[^\0]{0,1000}\0")
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
    problem: str = ""  # why it has no data: "HTTP 404", TOO_LARGE, BROKEN, NO_STATUS


def read_warc(file: BinaryIO, damaged: Callable[[int], object]) -> Iterator[Page]:
    """Pages of a seekable file; ``damaged`` gets the offset of every stretch that is skipped."""
    marker = _GZIP_MEMBER if file.read(2) == _GZIP_MEMBER[:2] else _PLAIN_RECORD
    start, reported = 0, -1
    while start >= 0:
        file.seek(start)
        last, whole = start, 0
        try:
            for record in ArchiveIterator(file, parse_http=False):
                last = start + record.stream_pos if marker == _PLAIN_RECORD else record.stream_pos
                page = _page(record)
                reported, whole = -1, whole + 1
                if page:
                    yield page
            if marker == _GZIP_MEMBER and _ends_inside_member(file, last + 1):
                damaged(last)
            return
        except (OSError, ValueError, EOFError):
            # A run of damage is one stretch: until a page was read again.
            if reported < 0:
                damaged(last)
                reported = last
            if marker == _GZIP_MEMBER and not whole and _ends_inside_member(file, start):
                yield from _up_to_cut(file, start)
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
    """None for a record that is none. Raises OSError for one that is not whole."""
    length = int(record.headers.get("Content-Length") or -1)
    is_page = bool(record.record_type & _KINDS)
    fits = length <= MAX_PAGE_BYTES + _HEAD_BYTES
    block = record.reader.read() if is_page and fits else b""
    # What is not kept is passed over in pieces.
    if length < 0 or (len(block) or record.consume()) < length:
        raise OSError("record is cut short")
    if not is_page:
        return None
    identified = record.headers.get("WARC-Identified-Payload-Type") or ""
    page = Page(
        url=record.headers.get("WARC-Target-URI") or "",
        id=(record.headers.get("WARC-Record-ID") or "").strip("<>"),
        date=record.headers.get("WARC-Date") or "",
        type=_media_type(identified or record.headers.get("Content-Type")),
        charset="utf-8",
        data=block,
    )
    if not fits:
        return replace(page, problem=TOO_LARGE)
    return _answer(page, identified) if record.is_http else page


def _answer(page: Page, identified: str) -> Page:
    """The page of an HTTP answer: ``page.data`` is all of it, head and body."""
    http = _http(page.data, "none")
    status = http.http_headers.status_code
    if status != 200:
        return replace(page, data=b"", problem=f"HTTP {status}" if status else NO_STATUS)
    try:
        body = _body(page.data)
    except OSError:
        return replace(page, data=b"", problem=BROKEN)
    if len(body) > MAX_PAGE_BYTES:
        return replace(page, data=b"", problem=TOO_LARGE)
    type_ = _media_type(identified or http.http_content_type)
    return replace(page, type=type_, charset=http.http_charset, data=body)


def _body(answer: bytes) -> bytes:
    """Unpacked, and no more of it than shows that it is too large: a few kilobytes can hold a
    gigabyte. Raises OSError for what is not encoded as its head says.
    """
    try:
        return _http(answer, "all").reader.read(MAX_PAGE_BYTES + 1)
    except OSError:
        # Older archives of Common Crawl hold unpacked bodies under the heads that servers sent.
        body = _http(answer, "none").reader.read(MAX_PAGE_BYTES + 1)
        if _STILL_ENCODED.match(body):
            raise
        return body


def _http(answer: bytes, decode: Literal["none", "all"]) -> WarcRecord:
    """Read anew, so that fastwarc unpacks it as it is read: in a record of bytes it does so at
    once, to the end."""
    record = WarcRecord.from_reader(io.BytesIO(_RECORD % (_HTTP, len(answer)) + answer))
    record.parse_http(auto_decode=decode)
    return record


def _media_type(header: str | None) -> str:
    return (header or "").split(";")[0].strip().lower()


def _up_to_cut(file: BinaryIO, start: int) -> Iterator[Page]:
    """Pages of a member that the file ends in; fastwarc gives it up when it is small."""
    file.seek(start)
    try:
        for record in ArchiveIterator(_Inflated(file), parse_http=False):
            if page := _page(record):
                yield page
    except (OSError, ValueError, EOFError, zlib.error):  # damage, which the caller has reported
        return


class _Inflated(io.RawIOBase):
    """The gzip member at the file's position, as far as the file goes. Raises zlib.error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._position = file, 0
        self.member = zlib.decompressobj(wbits=31)

    def read(self, size: int = -1) -> bytes:
        data = b""
        while not data and not self.member.eof:
            packed = self.member.unconsumed_tail or self._file.read(_BLOCK)
            if not packed:
                break
            data = self.member.decompress(packed, size if size > 0 else _BLOCK)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position


def _ends_inside_member(file: BinaryIO, start: int) -> bool:
    """Whether a member begins at or after ``start`` that the file does not hold to its end: one
    that is cut before its record's headers looks to fastwarc like the end of the file."""
    found = _find(file, _GZIP_MEMBER, start)
    if found < 0:
        return False
    file.seek(found)
    inflated = _Inflated(file)
    try:
        while inflated.read():
            pass
    except zlib.error:  # damage, or three bytes that only look like a member
        return False
    return not inflated.member.eof


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
