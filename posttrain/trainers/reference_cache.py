"""Log-probs of the reference, computed once and kept on disk under what they depend on.

The key is a digest of the reference's weights, the token ids of all rows in order,
and the settings that change a log-prob (precision, and the trainer that computes them). So another
loss, learning rate or seed finds them again, and another model or data never does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.float32]]  # [rows] each


def cache_folder(given: str) -> Path:
    """``given``, or this user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "posttrain" / "reference-logprobs"


def key_of(weights: str, rows: str, settings: Mapping[str, Any]) -> str:
    """Digest of all that the log-probs depend on; ``weights`` and ``rows`` are digests."""
    text = repr((weights, rows, sorted(settings.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(model: Any, adapter: str = "") -> str:
    """Of every tensor of a model; of its adapters only the one called ``adapter``."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" in name and not (adapter and f".{adapter}." in name):
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        digest.update(f"{plain} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def load(folder: Path, key: str, names: Sequence[str], n: int) -> Columns | None:
    """The columns kept under ``key``; None when there are none, or they are not of ``n`` rows."""
    try:
        with np.load(folder / f"{key}.npz") as found:
            columns = {name: found[name] for name in names}
    except (OSError, KeyError, ValueError, BadZipFile):  # none, or torn
        return None
    return columns if all(len(column) == n for column in columns.values()) else None


def store(folder: Path, key: str, columns: Mapping[str, Any]) -> None:
    """Keep the columns under ``key``; atomic."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{os.getpid()}.npz"
    arrays: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in columns.items()}
    np.savez(temporary, **arrays)
    os.replace(temporary, folder / f"{key}.npz")
