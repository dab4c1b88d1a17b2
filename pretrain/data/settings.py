"""Decides what a data job is asked for, and that it makes sense before anything is written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pretrain.checked_settings import CheckedSettings
from pretrain.data.registry import Entry, nearest
from pretrain.errors import UsageError

DEFAULT_STEPS: tuple[Entry, ...] = (
    *("url", "extract", "language"),
    *("gopher_repetition", "gopher_quality", "c4", "fineweb"),
)
# What may differ between a run and its continuation: where and how fast, not what.
_FREE = {"executor", "workers", "deadline_s", "stall_s"}


class DataSettings(CheckedSettings):
    """A data job: ``input`` through ``steps`` and ``stages`` into the folder ``output``."""

    input: Path  # a folder, searched through, or a file
    output: Path
    format: str = "auto"  # warc, jsonl, parquet, html; auto goes by the ending of each file
    text_key: str = "text"  # of JSONL and Parquet rows
    steps: tuple[Entry, ...] = DEFAULT_STEPS  # over documents: names, or tables with settings
    stages: tuple[Entry, ...] = ()  # over files, after the steps
    tasks: int = Field(0, ge=0)  # shards; 0: one for each input file, at most 64
    workers: int = Field(0, ge=0)  # tasks at once; 0: one for each core
    executor: Entry = "local"  # or a table: {name = "slurm", partition = ..., time = ...}
    rejects: bool = False  # keep what the steps dropped, in 00_steps.rejects
    deadline_s: float | None = Field(None, gt=0)  # of the job; what is finished is kept
    stall_s: float = Field(900.0, gt=0)  # no task got further for so long: stop


def make_settings(values: Mapping[str, Any]) -> DataSettings:
    """Checked settings. Raises UsageError for unknown names, missing ones and wrong kinds."""
    known = DataSettings.model_fields
    for key in values:
        if key not in known:
            raise UsageError(f'there is no setting "{key}"{nearest(key, known)}')
    for key in ("input", "output"):
        if not values.get(key):
            raise UsageError(f"{key} is missing: {key} = a folder")
    return DataSettings(**values)


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
    now = settings.model_dump(mode="json")
    for key in now.keys() - _FREE:
        if now[key] != earlier.get(key):
            return f"{key} was {earlier.get(key)!r}, now it is {now[key]!r}"
    return None
