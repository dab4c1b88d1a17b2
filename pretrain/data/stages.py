"""Decides which stages a data configuration can name: one function for each, over two folders.

A function takes the folder to read, the folder to write and the settings: the fields of the
stage's class, and ``rejects``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.data.duplicates import ExactDuplicates, UrlDuplicates
from pretrain.data.near_duplicates import NearDuplicates
from pretrain.data.repeated_lines import RepeatedLines
from pretrain.data.repeated_spans import RepeatedSpans
from pretrain.data.stage import run_stage
from pretrain.errors import UsageError


def _over_folders(factory: Callable[..., Any]) -> Callable[[Path, Path, dict[str, Any]], object]:
    def stage(source: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        values = dict(settings)
        rejects = bool(values.pop("rejects", False))
        try:
            made = factory(**values)
        except TypeError as error:
            raise UsageError(f"{factory.__name__}: {error}") from error
        return run_stage(made, source, out, rejects=rejects)

    return stage


url_duplicates = _over_folders(UrlDuplicates)
exact_duplicates = _over_folders(ExactDuplicates)
near_duplicates = _over_folders(NearDuplicates)
repeated_lines = _over_folders(RepeatedLines)
repeated_spans = _over_folders(RepeatedSpans)
