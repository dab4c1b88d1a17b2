"""What trainers on pairs have in common: batches, what is held out, what is shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from posttrain.config import Count, Share
from posttrain.provenance import package_versions
from posttrain.trainers.training import AdapterSettings, PaceSettings, batches

# What may differ between an interrupted training and the call that goes on with it.
FREE = {"resume", "quiet", "threads", "log_every", "checkpoint_every"}


class PairSettings(PaceSettings):
    """Settings of every trainer on pairs."""

    batch_size: Count = Field(default=32, description="rows in one step, over all ranks")
    micro_batch_size: Count | None = Field(
        default=None, description="of them at once on a rank; the rest is accumulated. None: all"
    )
    lora: AdapterSettings | None = Field(
        default=None, description="rank, alpha, targets, dropout, dora, rslora; {}: all weights"
    )
    held_out_share: Share = Field(
        default=0.1, description="share of prompts kept for the numbers at the end"
    )
    log_every: Count = Field(default=10, description="steps between two points of the curves")
    resume: bool = Field(default=False, description="go on with an interrupted training")
    quiet: bool = Field(default=False, description="show no progress")

    @field_validator("lora", mode="before")
    @classmethod
    def _empty_is_off(cls, lora: Any) -> Any:
        return None if lora == {} else lora  # TOML has no word for nothing

    def batches(self) -> dict[str, int]:
        """How a step's rows are divided among ranks and passes. Raises UsageError."""
        return batches(self.batch_size, self.micro_batch_size)

    def asked(self) -> dict[str, Any]:
        """What must be the same when an interrupted training goes on."""
        return self.model_dump(mode="json", exclude=FREE)


def base_record(
    model: str | Path, settings: PairSettings, seed: int, counts: Mapping[str, int], result: Any
) -> dict[str, Any]:
    """What every record begins with; ``result`` is the trainer's, ``counts`` of rows left out."""
    return {
        "model": str(model),
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "dropped": dict(counts),
        "steps": result.global_step,
        "seconds": result.metrics["train_runtime"],
        "versions": package_versions(),
    }


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
