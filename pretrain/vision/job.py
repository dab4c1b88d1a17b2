"""Decides what training a model that sees means: check everything, then stage after stage.

OUT/config.json           settings, versions, what the rows were
OUT/checkpoints/stageN/   what a stage goes on from, until it is done
OUT/stage1/, OUT/stage2/  model, processor, pretrain.json with the curve and the held-out losses

Held-out rows are measured before and after each stage, with their own pictures and with those of
other rows: a model that does not look at its pictures has the same loss with both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import RunError, UsageError
from pretrain.vision.rows import Reader, Row, read_rows
from pretrain.vision.settings import VisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that a resumed run may have otherwise.
_FREE = ("out", "workers", "checkpoint_every", "report_every")


def train_vision(config: VisionConfig | Mapping[str, Any] | str | Path, *overrides: str) -> Path:
    """Train a model that sees; returns the folder that its last stage left.

    ``config`` is a TOML file or the same as a tree; ``overrides`` are ``section.key=value``. Ctrl-C
    saves and raises KeyboardInterrupt; the same call goes on from there. Raises UsageError before
    anything is trained, RunError later.
    """
    from pretrain.checked_settings import read_tree

    if isinstance(config, str | Path):
        config = read_tree(config, overrides)
    if isinstance(config, Mapping):
        config = VisionConfig(**config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a model that sees is trained by one process: start it without torchrun")
    from pretrain.training.job import folder_lock

    job = _Job(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with folder_lock(config.out):
        return job.run()


class _Job:
    """The parts of a run, joined; made, it has checked all that can be known before it starts."""

    def __init__(self, config: VisionConfig) -> None:
        import torch

        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        window, processor = _open(config.model)
        self.reader = Reader(processor)
        files = {f"stage{number}": stage.data for number, stage in config.stages.items()}
        if config.held_out:
            files["held_out"] = config.held_out
        self.rows = {name: read_rows(path, self.reader.place) for name, path in files.items()}
        self.digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
        self._check_same_run()
        swapped = with_others(self.rows.get("held_out", []))
        self.reader.check([row for rows in (*self.rows.values(), swapped) for row in rows], window)

    def _check_same_run(self) -> None:
        from pretrain.training.job import check_identity

        record = self.config.out / "config.json"
        if record.exists():
            was = json.loads(record.read_text())
            check_identity(self.config.out, _identity(was), _identity(self._about()), _FREE)

    def _about(self) -> dict[str, Any]:
        import torch
        import transformers

        return {
            "settings": self.config.model_dump(mode="json"),
            "rows": self.digests,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def run(self) -> Path:
        """Every stage that is not done yet."""
        from pretrain.vision.stage import say

        (self.config.out / "config.json").write_text(json.dumps(self._about(), indent=1) + "\n")
        source = Path(self.config.model)
        for number in self.config.stages:
            done = self.config.out / f"stage{number}"
            if done.exists():
                say(f"stage {number} is done: {done}")
            else:
                self._stage(number, source, done)
            source = done
        return source

    def _stage(self, number: int, source: Path, out: Path) -> None:
        from safetensors import SafetensorError

        from pretrain.base import save
        from pretrain.training.rank_files import failure
        from pretrain.vision.stage import checkpoints, say, train_stage

        model, rows = _load(source), self.rows[f"stage{number}"]
        say(f"stage {number}: {len(rows):,} rows of {self.config.stages[number].data}")
        before = self._measure(model, f"before stage {number}")
        try:
            curve, asked = train_stage(self.config, number, model, self.reader, rows)
            after = self._measure(model, f"after stage {number}")
            record = {**self._about(), "stage": number, "rows_read": len(rows), "curve": curve}
            held_out = {"before": before, "after": after}
            save(out, model, self.reader.processor, {**record, "held_out": held_out})
        except (OSError, SafetensorError) as error:
            why = failure(error, self.config.out)
            raise RunError(f"stage {number} stopped: {why}; the same command goes on") from error
        shutil.rmtree(checkpoints(self.config, number), ignore_errors=True)
        say(f"stage {number} is done: {out}")
        if asked:
            raise KeyboardInterrupt(f"stage {number} was at its end, the same command goes on")

    def _measure(self, model: PreTrainedModel, when: str) -> dict[str, float]:
        """Held-out losses in nats per learnt token; nothing without held-out rows."""
        from pretrain.vision.stage import mean_loss, say

        rows = self.rows.get("held_out", [])
        if not rows:
            return {}
        found = {
            name: mean_loss(self.config, model, self.reader, some)
            for name, some in (("own_picture", rows), ("other_picture", with_others(rows)))
        }
        say(
            f"{when}: held-out loss {found['own_picture']:.3f}, with the pictures of other rows "
            f"{found['other_picture']:.3f}"
        )
        return found


def with_others(rows: Sequence[Row]) -> list[Row]:
    """Each row with the picture of the row half of them further on, or of the first after that with
    another picture. Raises UsageError where all rows have the same one.
    """
    found, half = [], len(rows) // 2
    for at, row in enumerate(rows):
        later = (rows[(at + half + n) % len(rows)].image for n in range(len(rows)))
        other = next((image for image in later if image != row.image), None)
        if other is None:
            raise UsageError(f"{row.where}: held-out rows need at least two different pictures")
        found.append(replace(row, image=other))
    return found


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must have as it was."""
    return {**about["settings"], "sha256": about["rows"]}


def _open(model: str) -> tuple[int, Any]:
    """Window and processor of a model that sees. Raises UsageError for any other."""
    from transformers import AutoConfig, AutoProcessor

    try:
        config: Any = AutoConfig.from_pretrained(model)
        if config.model_type != "llava_next":
            raise UsageError(
                f"model = {model!r} is a {config.model_type}, and this trains llava_next: "
                "`pretrain model --arch llava` makes one, `pretrain train` trains language models"
            )
        processor: Any = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"model = {model!r} can't be loaded: {error}") from error
    return int(config.text_config.max_position_embeddings), processor


def _load(folder: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype="float32")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
