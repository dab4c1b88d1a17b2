"""The settings of supervised fine-tuning: one flat table, with the same names everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.config import Count, Positive, checked, read_tree
from posttrain.trainers.settings import AdapterSettings, TrainerSettings


class SftAdapterSettings(AdapterSettings):
    """An adapter to train: ``lora = {rank = 16, alpha = 32}``; the result is merged as well."""

    start: str = ""  # folder of an adapter of the same base to go on from


class SftSettings(TrainerSettings):
    """Data, loss and pace. The rates suit full training of a model of a few million."""

    learning_rate: Positive = Field(
        default=3e-4, description="peak rate of AdamW; falls along a cosine"
    )
    batch_size: Count = Field(
        default=32, description="conversations in one step, over all ranks; with packing=rows, rows"
    )
    packing: Literal["off", "batch", "rows"] = Field(
        default="off",
        description="no padding: a step's conversations end to end, or rows filled to max_length",
    )
    mix: dict[str, Positive] = Field(
        default_factory=dict, description="data file -> share of the examples, in place of data"
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="what to do with equal examples after the first"
    )
    against: dict[str, str] = Field(
        default_factory=dict, description="evaluation set's name -> its file; not to be trained on"
    )
    contaminated: Literal["error", "drop", "keep"] = Field(
        default="error", description="what to do with rows that hold text of an evaluation set"
    )
    thinking: Literal["template", "keep", "drop", "split"] = Field(
        default="template",
        description="thoughts: as the template has it, all, none; split: every answer an example",
    )
    template_args: dict[str, Any] = Field(
        default_factory=dict, description="variables for the chat template"
    )
    chat_template: str = Field(
        default="", description="file with a chat template to use in place of the tokenizer's"
    )
    tokenizer: str = Field(
        default="", description="folder or hub name of another tokenizer with the same vocabulary"
    )
    new_tokens: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="token to add -> words whose mean embedding it starts at"
    )
    neftune_alpha: float = Field(
        default=0.0, ge=0.0, description="noise on embeddings in training (arXiv:2310.05914)"
    )
    lora: SftAdapterSettings | None = Field(
        default=None,
        description="rank, alpha, targets, dropout, dora, rslora, bits, start; {}: all weights",
    )
    deepspeed: str = Field(default="", description="DeepSpeed's JSON file, for several ranks")
    trl: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of trl.SFTConfig, by their names"
    )
    quiet: bool = Field(default=False, description="show no examples, no report")


class SftConfig(SftSettings):
    """A whole job."""

    model: str = Field(description="checkpoint folder or hub name")
    data: str = Field(default="", description="file or folder of conversations; or use mix")
    out_dir: str = Field(default="runs/sft", description="new folder for the result")
    seed: int = Field(default=0, description="decides order, dropout and new weights")


def load_sft_config(path: str | Path | None, overrides: Sequence[str] = ()) -> SftConfig:
    """Read a TOML file with ``key=value`` overrides. Raises UsageError that names the setting."""
    return checked(SftConfig, read_tree(path, overrides))
