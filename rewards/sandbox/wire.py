"""Frames between a sandbox and its launcher process: one JSON header, then the raw bytes it names.

A frame is 4 bytes of length (big endian), the header in UTF-8, and the blobs one after another;
the header's ``"sizes"`` says how long each is. Nothing is pickled. Both ends are ours, but what is
read is bounded all the same.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

MAX_HEADER = 16 << 20  # a program may have many files, each with its path
MAX_BLOBS = 1 << 31
CHUNK = 1 << 20

_LENGTH = struct.Struct("!I")


def send(channel: socket.socket, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one frame. Raises OSError when the other end is gone or does not read in time."""
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    channel.sendall(_LENGTH.pack(len(text)) + text)
    for blob in blobs:
        channel.sendall(blob)


def receive(
    channel: socket.socket, deadline: float | None = None
) -> tuple[dict[str, Any], list[bytes]]:
    """The next frame. ``deadline`` is a ``time.monotonic()``.

    Raises EOFError when the other end closed, TimeoutError at the deadline, ValueError for
    something that is no frame.
    """
    (length,) = _LENGTH.unpack(take(channel, _LENGTH.size, deadline))
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header: dict[str, Any] = json.loads(take(channel, length, deadline))
    sizes = header.pop("sizes")
    if sum(sizes) > MAX_BLOBS:
        raise ValueError(f"a frame of {sum(sizes)} bytes")
    return header, [take(channel, size, deadline) for size in sizes]


def take(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    """Exactly ``size`` bytes. Raises EOFError, TimeoutError."""
    pieces, left = [], size
    while left:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("no answer in time")
            channel.settimeout(remaining)
        piece = channel.recv(min(left, CHUNK))
        if not piece:
            raise EOFError("the other end closed")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
