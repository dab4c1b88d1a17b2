"""Decides the wire format between our process and the agent inside a container.

One frame is four bytes (big-endian length of the header), a JSON header, and the bytes that the
header announces as ``"body"``. Both ends read with bounds, since neither may be hurt by the other:
``read`` refuses a header or a body above its limit before it allocates anything for it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

HEADER_BYTES = 1 << 20  # of a header; argument lists and file names are in it
LENGTH = struct.Struct(">I")


class BadFrame(ValueError):
    """The other side sent what is no frame, or too much."""


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """The frame of a header and a body. Raises BadFrame for a header that is too long."""
    text = json.dumps({**header, "body": len(body)}).encode("ascii")
    if len(text) > HEADER_BYTES:
        raise BadFrame(f"a header of {len(text)} bytes, at most {HEADER_BYTES}")
    return LENGTH.pack(len(text)) + text + body


def read(take: Callable[[int], bytes], body_bytes: int) -> tuple[dict[str, Any], bytes]:
    """The next frame; ``take(n)`` returns exactly n bytes or raises. Raises BadFrame."""
    (length,) = LENGTH.unpack(take(LENGTH.size))
    if length > HEADER_BYTES:
        raise BadFrame(f"a header of {length} bytes")
    try:
        header = json.loads(take(length))
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"the header is not JSON: {error}") from None
    size = header.get("body") if isinstance(header, dict) else None
    if type(size) is not int or not 0 <= size <= body_bytes:
        raise BadFrame(f"a body of {size!r:.40} bytes, at most {body_bytes}")
    return header, take(size)
