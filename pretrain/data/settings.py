"""Decides what a data job is asked for, and that it makes sense before anything is written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.data.registry import Entry, nearest
from pretrain.errors import UsageError

DEFAULT_STEPS: tuple[Entry, ...] = (
    *("url", "extract", "language"),
    *("gopher_repetition", "gopher_quality", "c4", "fineweb"),
)
# What may differ between a run and its continuation: where and how fast, not what.
_FREE = {"executor", "workers", "deadline_s", "stall_s"}


@dataclass(frozen=True)
class DataSettings:
    """A data job: ``input`` through ``steps`` and ``stages`` into the folder ``output``."""

    input: str  # a folder, searched through, or a file
    output: str
    format: str = "auto"  # warc, jsonl, parquet, html; auto goes by the ending of each file
    text_key: str = "text"  # of JSONL and Parquet rows
    steps: Sequence[Entry] = DEFAULT_STEPS  # over documents: names, or tables with settings
    stages: Sequence[Entry] = ()  # over files, after the steps
    tasks: int = 0  # shards; 0: one for each input file, at most 64
    workers: int = 0  # tasks at once; 0: one for each core
    executor: Entry = "local"  # local, or a table: {name = "slurm", partition = ..., time = ...}
    rejects: bool = False  # keep what was dropped, in folders of their own
    deadline_s: float | None = None  # of the whole job; what is finished is kept
    stall_s: float = 900.0  # no task got further for so long: stop


def make_settings(values: Mapping[str, Any]) -> DataSettings:
    """Checked settings. Raises UsageError for unknown names, missing ones and wrong kinds."""
    known = {field.name for field in fields(DataSettings)}
    for key in values:
        if key not in known:
            raise UsageError(f'there is no setting "{key}"{nearest(key, known)}')
    for key in ("input", "output"):
        if not values.get(key):
            raise UsageError(f"{key} is missing: {key} = a folder")
    for key in ("steps", "stages"):
        if isinstance(values.get(key, ()), str) or not isinstance(values.get(key, ()), Sequence):
            raise UsageError(f"{key} is a list of names or tables, not {values[key]!r}")
    for key in ("tasks", "workers", "deadline_s", "stall_s"):
        value = values.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or value < 0
        ):
            raise UsageError(f"{key} is a number that is not negative, not {value!r}")
    return DataSettings(
        **{**values, "input": str(values["input"]), "output": str(values["output"])}
    )


def read_config(path: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file with ``key=value`` overrides, whose values are TOML or else plain strings."""
    if path is not None and "=" in path:
        return read_config(None, [path, *overrides])
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UsageError(f"{override!r} is not of the form key=value")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def difference(settings: DataSettings, earlier: Mapping[str, Any]) -> str | None:
    """The first setting that makes this another job than the earlier one, with both values."""
    now = json.loads(json.dumps(asdict(settings)))
    for key in now.keys() - _FREE:
        if now[key] != earlier.get(key):
            return f"{key} was {earlier.get(key)!r}, now it is {now[key]!r}"
    return None
