"""What trainings on judgements have in common: checks, place, run, what is shown and recorded.

A trainer is its rows, its TRL trainer, and what it measures on the held-out rows; the rest is here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from posttrain.config import Share
from posttrain.storage.jsonl import finite
from posttrain.storage.provenance import package_versions
from posttrain.trainers.adapters import check_adapter, save_model, settle_quantised
from posttrain.trainers.preference_data import Row, fingerprint
from posttrain.trainers.settings import TrainerSettings, main_rank
from posttrain.trainers.training import (
    Place,
    arguments,
    check_free,
    checkpoint_tokenizer,
    plain_output,
    run,
    window,
)


class PairSettings(TrainerSettings):
    """Settings of every trainer on judgements."""

    held_out_share: Share = Field(
        default=0.1, description="share of prompts kept for the numbers at the end"
    )


class Rows(Protocol):
    """Rows of tokens, in two parts."""

    @property
    def train(self) -> list[Row]: ...
    @property
    def held_out(self) -> list[Row]: ...
    @property
    def counts(self) -> Mapping[str, int]: ...  # of what was dropped or cut


PairSettingsT = TypeVar("PairSettingsT", bound=PairSettings)


class PairJob(Generic[PairSettingsT]):
    """A training, checked as far as it can be before its rows are read. Raises UsageError."""

    def __init__(
        self, model: str | Path, out_dir: str | Path, settings: PairSettingsT, seed: int
    ) -> None:
        self.model, self.settings, self.seed = str(model), settings, seed
        self._out_dir = Path(out_dir)
        check_free(self._out_dir)
        settings.batches()
        self.tokenizer = checkpoint_tokenizer(model)
        check_adapter(settings.lora, self.model)
        self.window = window(model, settings)

    @contextmanager
    def place(self, rows: Rows) -> Iterator[Place]:
        """Where these rows are trained on. Raises UsageError, as ``Place`` does."""
        digest = fingerprint([*rows.train, *rows.held_out])
        asked = {"model": self.model, "rows": digest, "seed": self.seed, **self.settings.asked()}
        with Place(self._out_dir, asked, resume=self.settings.resume) as place, plain_output():
            yield place

    def arguments(self, kind: Any, place: Place, **own: Any) -> Any:
        """The trainer's arguments; ``own`` are of this kind, and win."""
        return arguments(kind, self.settings, place.work, self.seed, **own)

    def run(self, trainer: Any, place: Place, shown: Mapping[str, str]) -> Any:
        """Train; ``shown`` are fields of the log and what they are called."""
        settle_quantised(trainer, getattr(self.settings.lora, "start", ""))
        trainer.add_callback(progress(shown, self.settings.quiet or not main_rank()))
        return run(trainer, place)

    def record(self, rows: Rows, result: Any, **measured: Any) -> dict[str, Any]:
        """What is written beside the result; ``result`` is the trainer's."""
        found = {
            "model": self.model,
            "seed": self.seed,
            "settings": self.settings.model_dump(mode="json"),
            "dropped": dict(rows.counts),
            "steps": result.global_step,
            "seconds": result.metrics["train_runtime"],
            "versions": package_versions(),
            "rows": len(rows.train),
        }
        return dict(finite(found | measured))

    def finish(
        self, trainer: Any, place: Place, record: Mapping[str, Any], name: str, **files: str
    ) -> Path:
        """Put the model with its record, and ``files`` by name, in its place."""
        if not main_rank():
            return place.out
        save_model(trainer, self.tokenizer, place.model, self.model)
        for file, text in files.items():
            (place.model / file).write_text(text)
        return place.finish(record, name)


def progress(names: Mapping[str, str], quiet: bool) -> Any:
    """A callback that writes a line for each logged window; on a terminal TRL's bar is enough.

    ``names``: field of the log -> what it is called.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if quiet or sys.stderr.isatty() or not logs or "loss" not in logs:
                return
            cells = [f"{title} {float(logs[n]):.4g}" for n, title in names.items() if n in logs]
            line = f"step {state.global_step}/{state.max_steps}  " + "  ".join(cells)
            print(line, file=sys.stderr, flush=True)

    return Progress()
