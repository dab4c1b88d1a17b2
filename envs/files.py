"""Reads rows from where a user keeps them: a file, a saved or downloadable ``datasets`` data set.

Decided here: the format is told by the name's ending; all rows are held in memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards import UsageError

ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz", ".parquet")
Row = Mapping[str, Any]


def looks_like_file(name: str) -> bool:
    """Whether ``name`` is meant as a data file or folder, existing or not."""
    return name.endswith(ENDINGS) or name.startswith((".", "/", "~")) or Path(name).exists()


def read(name: str, *, split: str = "train") -> Sequence[Row]:
    """The rows of a file, or of a folder written by ``Dataset.save_to_disk``. Raises UsageError."""
    path = Path(name).expanduser()
    if path.is_dir():
        return saved_dataset(path, split)
    if not path.is_file():
        raise UsageError(f"no such data file: {path}")
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"cannot read {path}: its name must end in {', '.join(ENDINGS)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
            return rows
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            text = lines.read()
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    return _json_rows(text, path)


def saved_dataset(path: Path, split: str) -> Sequence[Row]:
    """A data set that ``datasets`` saved to a folder."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{path} is a folder, but not one written by save_to_disk") from error
    return of_split(loaded, split, str(path))


def hub_dataset(name: str, *, subset: str | None, split: str) -> Sequence[Row]:
    """A data set by its hub name, through ``datasets`` and its cache."""
    import datasets

    try:
        return of_split(datasets.load_dataset(name, subset, split=split), split, name)
    except (OSError, ValueError, RuntimeError) as error:  # not found, offline, unknown split, ...
        raise UsageError(f"cannot load data set {name!r} (split {split!r}): {error}") from error


def of_split(loaded: Any, split: str, name: str) -> Sequence[Row]:
    """A ``datasets`` object as rows; of several splits, the named one."""
    if isinstance(loaded, Mapping):  # DatasetDict
        if split not in loaded:
            raise UsageError(f"{name} has no split {split!r}; it has {', '.join(loaded)}")
        loaded = loaded[split]
    rows: list[Row] = loaded.to_list()
    return rows


def _json_rows(text: str, path: Path) -> list[Row]:
    """One object per line; or, in a .json file, one list of objects."""
    try:
        if path.name.endswith((".json", ".json.gz")):
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise UsageError(f"{path} must hold a list of objects, got {type(rows).__name__}")
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append(_json_line(line, number, path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    return rows


def _json_line(line: str, number: int, path: Path) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}: not an object but {type(row).__name__}")
    return row
