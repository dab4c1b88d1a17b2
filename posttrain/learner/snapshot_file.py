"""Weights on their way out of the learner: the engines' snapshot file and the final checkpoint.

The snapshot is one safetensors file, written a tensor at a time so that the model never exists
twice in memory, under a temporary name until it is complete. Its folder may be in /dev/shm.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_weights(
    path: Path, shapes: Shapes, tensors: Iterator[tuple[str, Tensor]], *, write: bool
) -> None:
    """Write ``tensors``, which come in the order of ``shapes``; atomic.

    Consumes the iterator on every rank, because producing it is a collective; only the rank with
    ``write`` touches the disk.
    """
    if not write:
        for _ in tensors:
            pass
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(_header(shapes))
        for (name, tensor), (expected, (dtype, shape)) in zip(tensors, shapes.items(), strict=True):
            if (name, tensor.dtype, tuple(tensor.shape)) != (expected, dtype, shape):
                raise ValueError(f"weights: expected {expected} {dtype} {shape}, got {name}")
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    os.replace(partial, path)


def _header(shapes: Shapes) -> bytes:
    """The safetensors header: length (8 bytes, little-endian), then JSON padded to 8 bytes."""
    entries, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {
            "dtype": _DTYPES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def moved(weight: Tensor, share: float, *, seed: int, add: bool = False) -> Tensor:
    """``weight * (1 + share * noise)`` with standard normal noise that the seed decides.

    With ``add``, for a matrix that may be zero: ``weight + share * noise / sqrt(columns)``.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    if add:
        return (weight.float() + share * noise / weight.shape[-1] ** 0.5).to(weight.dtype)
    return (weight.float() * (1 + share * noise)).to(weight.dtype)


def write_checkpoint(folder: Path, model: Any, weights: dict[str, Tensor], source: str) -> None:
    """An ordinary Hugging Face folder: config, weights, and the tokenizer of ``source``; atomic."""
    from transformers import AutoTokenizer

    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=weights)
    AutoTokenizer.from_pretrained(source).save_pretrained(aside)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
