"""Decides how settings that come from a file or a caller are checked: at once, by name.

A subclass is a frozen pydantic model; what is wrong with its values, or with those of a model
inside it, is one ``UsageError`` that names the setting. ``read_tree`` reads them from TOML.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pretrain.errors import UsageError


class CheckedSettings(BaseModel):
    """Settings without unknown names, wrong types or numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Raises UsageError."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
            said = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{where}: {said}" if where else said) from error


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file with ``section.key=value`` on top; values are TOML, a bare word is a string.

    Raises UsageError.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text())
        except OSError as error:
            raise UsageError(f"can't read the config {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _set(tree, override)
    return tree


def _set(tree: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name.strip():
        raise UsageError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UsageError(f"{name}: {section} is a value, not a section")
    tree[key] = value
