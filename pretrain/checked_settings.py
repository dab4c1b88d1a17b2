"""Decides how settings that come from a file or a caller are checked: at once, by name.

A subclass is a frozen pydantic model; what is wrong with its values, or with those of a model
inside it, is one ``UsageError`` that names the setting.
"""

from __future__ import annotations

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
