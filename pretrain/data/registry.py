"""Decides what names mean in a data configuration: steps over documents and stages over files.

An entry is ``"module:object"``, imported when it is used, so that a name costs nothing until then.
Anyone's own step or stage, and datatrove's filters, can be named the same way without being
registered. A step is a class
(``pretrain.data.steps.Step``), called with its settings; a stage is a function
``stage(folder_in, folder_out, settings)`` that reads one folder of ``NNNNN.jsonl.gz`` shards and
writes another, whole or not at all, with a ``counts.json``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

    from pretrain.data.steps import Step

Stage = Callable[[Path, Path, dict[str, Any]], object]
Entry = str | Mapping[str, Any]  # "name", or {"name": "name", setting: value, ...}

STEPS = {
    "url": "pretrain.data.urls:UrlFilter",
    "extract": "pretrain.data.extract:Extract",
    "language": "pretrain.data.language:Language",
    "gopher_repetition": "pretrain.data.heuristics:GopherRepetition",
    "gopher_quality": "pretrain.data.heuristics:GopherQuality",
    "c4": "pretrain.data.heuristics:C4",
    "fineweb": "pretrain.data.heuristics:FineWeb",
    "pii": "pretrain.data.pii:Pii",
    "nsfw": "pretrain.data.nsfw:Nsfw",
    "licence": "pretrain.data.licences:Licence",
    "decontaminate": "pretrain.data.decontamination:Decontaminate",
    "quality": "pretrain.data.quality:Quality",
    "education": "pretrain.data.education:Education",
}
STAGES = {
    "url_duplicates": "pretrain.data.stages:url_duplicates",
    "exact_duplicates": "pretrain.data.stages:exact_duplicates",
    "near_duplicates": "pretrain.data.stages:near_duplicates",
    "repeated_lines": "pretrain.data.stages:repeated_lines",
    "repeated_spans": "pretrain.data.stages:repeated_spans",
    "shards": "pretrain.data.shard_writer:shards_stage",
}


def make_step(entry: Entry) -> Step:
    """The step, with its settings. Raises UsageError for unknown names and settings."""
    name, settings = split_entry(entry, "step")
    factory = _find(name, STEPS, "step")
    _check_settings(f"step {name}", factory, settings)
    step: Any = factory(**settings)
    return step if hasattr(step, "check") else DatatroveFilter(step)


class DatatroveFilter:
    """One of datatrove's own filters as a step."""

    def __init__(self, block: Any) -> None:
        if not hasattr(block, "filter"):
            raise UsageError(f"{type(block).__name__} has neither check nor filter: it is no step")
        self.name = type(block).__name__
        self._block = block

    def check(self, document: Document) -> str | None:
        """datatrove answers with a truth value, or (truth value, reason)."""
        result = self._block.filter(document)
        kept, reason = result if isinstance(result, tuple) else (result, None)
        return None if kept else str(reason or "dropped")


def find_stage(entry: Entry) -> tuple[str, Stage, dict[str, Any]]:
    """(name, function, settings) of a stage. Raises UsageError for an unknown name."""
    name, settings = split_entry(entry, "stage")
    return name, _find(name, STAGES, "stage"), settings


def split_entry(entry: Entry, kind: str) -> tuple[str, dict[str, Any]]:
    """``"name"`` or ``{"name": ..., setting: ...}`` as (name, settings)."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UsageError(f"a {kind} is a name or a table with a name, not {entry!r}")
    return entry["name"], {key: value for key, value in entry.items() if key != "name"}


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?``, or what there is when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; there are {', '.join(names)}" if names else "; there are none yet"


def _find(name: str, known: dict[str, str], kind: str) -> Any:
    target = known.get(name, name)
    if ":" not in target:
        raise UsageError(f'there is no {kind} "{name}"{nearest(name, known)}')
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f'{kind} "{name}": can\'t import {target}: {error}') from error


def _check_settings(what: str, factory: Any, settings: dict[str, Any]) -> None:
    known = inspect.signature(factory).parameters
    for key in settings:
        if key not in known:
            raise UsageError(f'{what} has no setting "{key}"{nearest(key, known)}')
