"""Decides whether weight files can be trusted and are whole, before anything loads them.

A safetensors file says in its head how long it is; one that is shorter was cut off on its way. A
pickle can run code when it is read, so it is refused unless it is allowed, and then read by torch
with ``weights_only=True``, which builds tensors and nothing else.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError

_INDEX = "model.safetensors.index.json"
_LONGEST_HEAD = 100_000_000  # bytes; the format's own limit


def check_weights(folder: Path, *, allow_pickle: bool) -> tuple[str, str]:
    """("safetensors" or "pickle", what was found). Raises UsageError."""
    if (folder / _INDEX).is_file():
        return "safetensors", _check_shards(folder)
    if (folder / "model.safetensors").is_file():
        tensors = head_of(folder / "model.safetensors")
        return "safetensors", f"model.safetensors, {len(tensors)} tensors, whole"
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not pickles:
        raise UsageError(
            f"{folder} has no weights: model.safetensors, or {_INDEX} with its shards, is missing"
        )
    if not allow_pickle:
        raise UsageError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when they are "
            "read; --allow-pickle reads them with weights_only=True"
        )
    return "pickle", f"{', '.join(pickles)}, read with weights_only=True"


def head_of(path: Path) -> dict[str, Any]:
    """Name -> dtype, shape and place of every tensor. Raises UsageError for a file not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LONGEST_HEAD:
            raise UsageError(f"{path} is no safetensors file: its first 8 bytes give no head")
        try:
            head: dict[str, Any] = json.loads(file.read(length))
            head.pop("__metadata__", None)
            end = max((one["data_offsets"][1] for one in head.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"{path}: its head cannot be read ({error}): fetch it again"
            ) from error
    if size != 8 + length + end:
        raise UsageError(
            f"{path} has {size:,} bytes, its head says {8 + length + end:,}: it was cut off or "
            "damaged; fetch it again"
        )
    return head


def _check_shards(folder: Path) -> str:
    try:
        where: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / _INDEX} cannot be read ({error}): fetch it again") from error
    shards = sorted(set(where.values()))
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise UsageError(f"{folder} lacks {len(absent)} of {len(shards)} shards: {absent[0]} ...")
    for shard in shards:
        promised = {name for name, place in where.items() if place == shard}
        if lost := promised - set(head_of(folder / shard)):
            raise UsageError(f"{folder / shard} lacks {sorted(lost)[0]}, which {_INDEX} puts there")
    return f"{len(shards)} shards, {len(where)} tensors, whole"
