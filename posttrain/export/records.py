"""Finds out where a checkpoint comes from, by what its runs left beside it.

A run directory's config.json describes the reinforcement learning whose ``model/`` it holds; a
trainer leaves a JSON file of its own inside the checkpoint. Each names the checkpoint it started
from, so the whole way back to the base can be told, as far as the folders are still there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NOT_RECORDS = {"config", "generation_config", "tokenizer", "tokenizer_config", "adapter_config"}
_TELLING = ("model", "settings")  # what a trainer's record has at least


@dataclass(frozen=True, slots=True)
class Stage:
    """One training that led to the checkpoint."""

    kind: str  # "grpo", or the name of the trainer's record: "sft", "pretrain", ...
    record: Mapping[str, Any]
    started_from: str  # checkpoint folder or hub name; "": from nothing
    made: Path  # the checkpoint's folder
    run: Path | None = None  # the run directory, of a grpo stage
    scores: Mapping[str, Any] = field(default_factory=dict)  # first and last evaluation


def stages(checkpoint: Path) -> list[Stage]:
    """How the checkpoint was made, the latest training first; [] where nothing is known."""
    found: list[Stage] = []
    seen: set[Path] = set()
    folder: Path | None = checkpoint
    while folder is not None and folder.is_dir() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        stage = _run_stage(folder) or _trainer_stage(folder)
        if stage is None:
            break
        found.append(stage)
        folder = _place_of(stage.started_from, folder)
    return found


def licence_of(checkpoint: Path) -> str:
    """The licence that the nearest model card on the way back to the base names, or ""."""
    way = stages(checkpoint)
    base = _place_of(way[-1].started_from, way[-1].made) if way else None
    for folder in (checkpoint, *(stage.made for stage in way), *([base] if base else [])):
        card = folder / "README.md"
        front = card.read_text(encoding="utf-8").split("---")[1:2] if card.is_file() else []
        found = re.search(r"^license:\s*(\S+)", front[0], re.MULTILINE) if front else None
        if found:
            return found[1]
    return ""


def shown(place: str) -> str:
    """A hub name as it is; of a folder its last two names, which say nothing of the machine."""
    return place if is_hub_name(place) else "/".join(Path(place).parts[-2:])


def is_hub_name(place: str) -> bool:
    """Whether it reads as owner/name and is no folder here."""
    return place.count("/") == 1 and not place.startswith((".", "/")) and not Path(place).exists()


def run_of(checkpoint: Path) -> Path | None:
    """The run directory that the checkpoint stands in."""
    run = checkpoint.resolve().parent
    manifest = _json(run / "config.json")
    return run if isinstance(manifest, dict) and "format" in manifest else None


def _run_stage(folder: Path) -> Stage | None:
    run = run_of(folder)
    if run is None or not folder.resolve().name.startswith("model"):
        return None
    manifest = _json(run / "config.json")
    evaluations = [r for r in _lines(run / "metrics.jsonl") if r.get("kind") == "eval"]
    phases = {r["phase"]: r for r in evaluations if r.get("phase") in ("before", "after")}
    started = str(manifest["config"].get("model", ""))
    return Stage("grpo", manifest, started, folder, run, phases)


def _trainer_stage(folder: Path) -> Stage | None:
    for path in sorted(folder.glob("*.json")):
        record = _json(path) if path.stem not in _NOT_RECORDS else None
        if isinstance(record, dict) and set(_TELLING) <= record.keys():
            return Stage(path.stem, record, str(record["model"]), folder)
        if isinstance(record, dict) and path.stem == "pretrain":
            return Stage("pretrain", record, "", folder)
    return None


def _place_of(name: str, beside: Path) -> Path | None:
    """A recorded folder: as it was written, or relative to a folder above the checkpoint."""
    if not name:
        return None
    for above in (Path(), *beside.resolve().parents):
        if (above / name).is_dir():
            return above / name
    return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    from posttrain.storage.jsonl import read_lines

    return (record for record in read_lines(path)[0] if isinstance(record, dict))
