"""Decides how a rank's state reaches the disk while training goes on: copied, then written aside.

DeepSpeed assembles its checkpoint as always, but where it would write a file, the tensors are
copied into the host's memory. That is all a save waits for. One thread writes, hashes and fsyncs
the copies, and then ``rank-N.json`` (size and SHA-256 of each file), or removes what it wrote and
leaves ``rank-N.error``. One copy at a time: the next save waits for the last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

Digest = dict[str, Any]  # {"bytes": int, "sha256": str}


@contextlib.contextmanager
def held_back(engine: Any, held: dict[Path, Any]) -> Iterator[None]:
    """Inside, what DeepSpeed saves goes to ``held`` by its path, as a copy."""
    writer = engine.checkpoint_engine

    def hold(state_dict: Any, path: str) -> None:
        held[Path(path)] = copied(state_dict)

    writer.save = hold  # hides the method of its class
    try:
        yield
    finally:
        del writer.save


def copied(tree: Any) -> Any:
    """The same tree with its tensors copied to the host; what is one tensor stays one (a tie)."""
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    return tree_map_only(Tensor, copy, tree)


def write_rank(folder: Path, rank: int, held: Mapping[Path, Any]) -> None:
    """Write all, or say what went wrong. Raises nothing: it runs in a thread, the marks tell."""
    try:
        digests = {}
        for path, tree in held.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:  # given a name, torch would hide what failed
                torch.save(tree, file)
            digests[str(path.relative_to(folder))] = digest_of(path, sync=True)
        write_whole(folder / f"rank-{rank}.json", json.dumps(digests).encode())
    except Exception as error:  # noqa: BLE001  a boundary: this thread's caller reads the marks
        size = sum(leaf.nbytes for leaf in tree_leaves(dict(held)) if isinstance(leaf, Tensor))
        why = f"{failure(error, folder.parent)}, {size / 2**20:,.1f} MiB to write"
        with contextlib.suppress(OSError):
            for path in held:  # first of all: on a full disk there is no room for the reason
                path.unlink(missing_ok=True)
            write_whole(folder / f"rank-{rank}.error", why.encode())


def failure(error: BaseException, folder: Path) -> str:
    """Why something was not written into ``folder``, for a person."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__  # torch raises its own on the way
    if cause is None:
        return f"{type(error).__name__}: {error}"
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else str(cause.strerror or cause)
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB"
    except OSError as gone:
        free = f"nothing known ({gone.strerror})"
    return f"{what} ({free} free in {folder})"


def digest_of(path: Path, *, sync: bool = False) -> Digest:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256")
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": found.hexdigest()}


def write_whole(path: Path, data: bytes) -> None:
    """``path`` holds exactly ``data``, on the disk, or is as it was."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
