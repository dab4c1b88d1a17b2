"""Decides how a stage over documents runs: one pass to prepare, one to decide, once per input.

A stage is a frozen dataclass: its fields are its settings. ``prepare`` reads the whole folder and
returns a function that says of each document, in order, whether it is dropped and why; it may
change the row. What it spills goes into a scratch folder that is gone afterwards.

A finished folder has ``stage.json``: the stage, its settings and the fingerprint of its input. The
same stage over the same input is then not run again; anything else in its place is an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pretrain.data import folders
from pretrain.data.counts import UNKNOWN, StepCounts
from pretrain.data.folders import Row
from pretrain.errors import UsageError
from pretrain.new_folder import new_folder

MARKER = "stage.json"


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a document goes. ``details`` join its metadata where rejects are kept."""

    reason: str
    details: dict[str, Any] = field(default_factory=dict)


Decide = Callable[[int, Row], Drop | None]  # the document's number and row


class Stage(Protocol):
    """What compares documents with one another."""

    @property
    def name(self) -> str:
        """Names it in counts and markers."""
        ...

    def prepare(self, source: Path, scratch: Path) -> Decide:
        """Read ``source``, then decide document by document. Raises UsageError for bad settings."""
        ...


def run_stage(stage: Stage, source: Path, out: Path, *, rejects: bool = False) -> dict[str, Any]:
    """Run ``stage`` over the folder ``source`` into ``out``; returns what ``counts.json`` holds.

    ``rejects`` keeps the dropped documents beside it, in ``<out>.rejects``: as they came, with
    ``dropped_by``, ``reason`` and the stage's details (for duplicates ``duplicate_of`` and, where
    it was measured, ``similarity``) in their metadata. Raises UsageError for a source that is no
    stage's output and for an ``out`` that holds something else.
    """
    marker = {"stage": stage.name, "settings": _settings(stage), "rejects": rejects}
    marker["input"] = folders.fingerprint(source)
    if (out / MARKER).is_file():
        if json.loads((out / MARKER).read_text()) == marker:
            counts: dict[str, Any] = json.loads((out / folders.COUNTS).read_text())
            return counts
        raise UsageError(
            f"{out} was made by another stage, with other settings or from other documents: "
            "choose another folder or remove it"
        )
    with new_folder(out) as aside, ExitStack() as stack:
        rejected = None
        if rejects:
            beside = out.with_name(f"{out.name}.rejects")
            shutil.rmtree(beside, ignore_errors=True)  # of a run that did not finish
            rejected = stack.enter_context(new_folder(beside))
        with folders.scratch_folder(aside) as scratch:
            decide = stage.prepare(source, scratch)
            counts = _filter(stage.name, decide, source, (aside, rejected))
        (aside / MARKER).write_text(json.dumps(marker, indent=1))
    return counts


def _filter(
    name: str, decide: Decide, source: Path, outs: tuple[Path, Path | None]
) -> dict[str, Any]:
    """The second pass: every shard to a shard of the same name."""
    counts, number = StepCounts(name), 0
    for shard in folders.shards_of(source):
        kept = folders.ShardWriter(outs[0] / shard.name)
        dropped = folders.ShardWriter(outs[1] / shard.name) if outs[1] else None
        for row in folders.read_shard(shard):
            text = row["text"]
            drop = decide(number, row)
            language = str((row.get("metadata") or {}).get("language", UNKNOWN))
            counts.add(text, row["text"], language, None if drop is None else drop.reason)
            number += 1
            if drop is None:
                kept.write(row)
            elif dropped is not None:
                why = {"dropped_by": name, "reason": drop.reason, **drop.details}
                dropped.write(row | {"text": text, "metadata": (row.get("metadata") or {}) | why})
        for writer in (kept, dropped):
            if writer is not None:
                writer.close()
    result = counts.as_json()
    for out in outs:
        if out is not None:
            (out / folders.COUNTS).write_text(json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _settings(stage: Stage) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(stage), default=str))  # type: ignore[call-overload]
    return settings
