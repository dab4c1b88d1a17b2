"""How a snapshot reaches a server on another machine.

Decides between two ways, once for each connection to a server. Where the server sees the snapshot's
folder under the same path (a shared file system, or this machine), the path is enough. Where it
does not, the files are sent the way requests go, with the same token; the orchestrator listens to
nobody. What arrived is compared by SHA-256.

A snapshot is sent before the server is paused, so that requests in flight go on meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from posttrain.engines.client import ServerFailed, VllmClient

_CHUNK = 2**20  # bytes


async def deliver(client: VllmClient, snapshot: Path, timeout_s: float) -> str:
    """The snapshot's path (a file or a folder) as the server knows it. Raises ServerFailed."""
    if client.sees_files is None:
        client.sees_files = await _sees(client, snapshot.parent, timeout_s)
    if client.sees_files:
        return str(snapshot)
    parcel = secrets.token_hex(16)
    files = sorted(snapshot.iterdir()) if snapshot.is_dir() else [snapshot]
    paths = [await _send(client, parcel, file, timeout_s) for file in files]
    return str(Path(paths[0]).parent) if snapshot.is_dir() else paths[0]


async def _sees(client: VllmClient, folder: Path, timeout_s: float) -> bool:
    """Whether the server finds a new file with a name that nobody can guess."""
    mark = folder / f".seen-{secrets.token_hex(16)}"
    mark.touch()
    try:
        answer = await client.post(
            f"/posttrain/sees?path={quote(str(mark))}",
            None,
            timeout_s=timeout_s,
            name="a shared folder",
        )
    finally:
        mark.unlink(missing_ok=True)
    return bool(answer["sees"])


async def _send(client: VllmClient, parcel: str, file: Path, timeout_s: float) -> str:
    digest = hashlib.sha256()
    name = f"sending {file.name}"
    answer = await client.put(
        f"/posttrain/files/{parcel}/{file.name}",
        _chunks(file, digest),
        timeout_s=timeout_s,
        name=name,
    )
    if answer["sha256"] != digest.hexdigest():
        raise ServerFailed(f"{name}: {client.url} received something else (SHA-256 differs)")
    return str(answer["path"])


async def _chunks(file: Path, digest: Any) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, _CHUNK):
            await asyncio.to_thread(digest.update, chunk)
            yield chunk
