"""The settings that all trainers share, and which of them a resume must find the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator

from posttrain.config import Count, Positive, Settings, checked
from posttrain.errors import UsageError

# What may differ between an interrupted training and the call that goes on with it.
_FREE = {"resume", "quiet", "threads", "log_every", "checkpoint_every"}


class AdapterSettings(Settings):
    """Low-rank adapters by PEFT: LoRA (arXiv:2106.09685), and two variants of it."""

    rank: Count = 16
    alpha: Count = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # or names of linear layers
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    dora: bool = False  # direction and magnitude apart (arXiv:2402.09353)
    rslora: bool = False  # scaled by alpha / sqrt(rank) (arXiv:2312.03732)
    bits: Literal[4] | None = None  # of the frozen weights: 4 is NF4 (QLoRA, arXiv:2305.14314)


class TrainerSettings(Settings):
    """What every trainer here is asked: length, pace, precision, checkpoints."""

    steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="optimiser steps; 0: epochs decides"
    )
    epochs: Positive = Field(default=1.0, description="passes over the data, where steps is 0")
    batch_size: Count = Field(default=32, description="rows in one step, over all ranks")
    micro_batch_size: Count | None = Field(
        default=None, description="of them at once on a rank; the rest is accumulated. None: all"
    )
    learning_rate: Positive = Field(default=1e-5, description="peak rate; falls along a cosine")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=10, description="linear warm-up, in steps"
    )
    max_length: Count = Field(default=1024, description="tokens of a prompt with its answer")
    too_long: Literal["error", "drop", "truncate"] = Field(
        default="error", description="what to do with longer rows; both others are counted"
    )
    bad_rows: Literal["error", "drop"] = Field(
        default="error", description="what to do with rows that cannot be used; drop: counted"
    )
    bf16: bool | None = Field(
        default=None, description="bfloat16 autocast; None: where hardware has it"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads; 0 leaves torch's choice"
    )
    lora: AdapterSettings | None = Field(
        default=None,
        description="rank, alpha, targets, dropout, dora, rslora, bits; {}: none",
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="steps between checkpoints; 0: only when interrupted"
    )
    log_every: Count = Field(default=10, description="steps between two points of the curves")
    resume: bool = Field(default=False, description="go on with an interrupted training")
    quiet: bool = Field(default=False, description="show no progress")

    @field_validator("lora", mode="before")
    @classmethod
    def _empty_is_off(cls, lora: Any) -> Any:
        return None if lora == {} else lora  # TOML has no word for nothing

    def asked(self) -> dict[str, Any]:
        """What must be the same when an interrupted training goes on."""
        return self.model_dump(mode="json", exclude=_FREE)

    def batches(self) -> dict[str, int]:
        """How a step's rows are divided among ranks and passes. Raises UsageError if they can't."""
        share, left = divmod(self.batch_size, ranks())
        micro = self.micro_batch_size or share
        if left or not micro or share % micro:
            raise UsageError(
                f"batch_size {self.batch_size} must be a multiple of {ranks()} ranks times "
                f"micro_batch_size {micro}"
            )
        return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}


SettingsT = TypeVar("SettingsT", bound=TrainerSettings)


def with_changes(
    kind: type[SettingsT], settings: SettingsT | None, changes: Mapping[str, Any]
) -> SettingsT:
    """``settings`` with some of them replaced, checked. Raises UsageError."""
    given = {} if settings is None else settings.model_dump(exclude_unset=True)
    return checked(kind, {**given, **changes})


def ranks() -> int:
    """Processes that train together, as torchrun and the DeepSpeed launcher say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def main_rank() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"
