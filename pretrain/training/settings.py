"""Decides what can be asked of a training run.

Data (``[data]``) are the stream's own settings (``pretrain/data/stream.py``): folders of shards,
and phases with rows, length, mix and budget. The number of steps is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pretrain.checked_settings import CheckedSettings, read_tree
from pretrain.data.stream import StreamSettings
from pretrain.model import ModelSettings
from pretrain.schedules import Kind


class OptimizerSettings(CheckedSettings):
    """AdamW. The betas are those of most published runs since GPT-3."""

    rate: float = Field(default=0.0, ge=0, description="peak; 0: by Step Law, from model and data")
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=1e-4, ge=0, description="weight of (log Z)^2; 0: none")


class ScheduleSettings(CheckedSettings):
    """The rate's share of its peak; see ``pretrain/schedules.py``."""

    kind: Kind = "wsd"
    warmup: int = Field(default=100, ge=0, description="steps")
    decay: float = Field(default=0.2, ge=0, le=1, description="share of the run that decays (wsd)")
    floor: float = Field(default=0.0, ge=0, le=1, description="share of the peak at the end")


class ParallelSettings(CheckedSettings):
    """How a step is divided over ranks, and over time on a rank."""

    zero_stage: int = Field(default=0, ge=0, le=3)
    tensor: int = Field(default=1, ge=1, description="ranks that share each matrix (AutoTP)")
    sequence: int = Field(default=1, ge=1, description="ranks that share each row (Ulysses)")
    pipeline: int = Field(default=1, ge=1, description="ranks that share the layers, in stages")
    micro_tokens: int = Field(
        default=16384, gt=0, description="tokens at once on a rank; the rest is accumulated"
    )
    checkpointing: bool = Field(default=False, description="compute layers twice, keep less")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sorted((self.tensor, self.sequence, self.pipeline))[1] > 1:
            raise ValueError("of tensor, sequence and pipeline only one can be above 1")
        if self.pipeline > 1 and self.zero_stage > 1:
            raise ValueError("pipeline goes with zero_stage 0 or 1: DeepSpeed has no other")
        return self

    @property
    def together(self) -> int:
        """Ranks that work on the same rows."""
        return self.tensor * self.sequence * self.pipeline


class CheckpointSettings(CheckedSettings):
    """What a run goes on from."""

    every: int = Field(default=500, ge=1, description="steps")
    keep_last: int = Field(default=2, ge=1)
    resume: Literal["auto", "never"] = "auto"
    keep_every: int = Field(
        default=0, ge=0, description="steps whose multiples are kept for good, to branch from"
    )
    start_from: str = Field(
        default="", description="a checkpoint of another run, to extend it or to branch from it"
    )


class SpikeSettings(CheckedSettings):
    """When a loss is no loss to learn from; see ``spikes.py``."""

    window: int = Field(default=128, ge=8, description="accepted losses to compare with")
    threshold: float = Field(default=8.0, gt=0, description="robust z-score; above, it is a spike")
    repeats: int = Field(default=5, ge=2, description="spikes in a row that roll the run back")
    rate_factor: float = Field(default=0.5, gt=0, le=1, description="for the rate, at a roll-back")


class ReportSettings(CheckedSettings):
    """What is told on the way."""

    every: int = Field(default=10, ge=1, description="steps between two lines")
    held_out: tuple[str, ...] = Field(default=(), description="folders of held-out shards")
    evaluate_every: int = Field(default=500, ge=1, description="steps")
    evaluate_tokens: int = Field(default=100_000, ge=1, description="of each language and domain")
    sample_every: int = Field(default=500, ge=1, description="steps")
    prompts: tuple[str, ...] = ()
    sample_tokens: int = Field(default=64, ge=1)
    peak_tflops: float = Field(default=0.0, ge=0, description="for MFU; 0: known or measured")


class TrainConfig(CheckedSettings):
    """A whole run."""

    out: Path = Field(description="folder of the run; the model appears in its folder final/")
    data: StreamSettings
    model: str = Field(default="", description="folder to go on from; empty: a new one")
    params: str = Field(
        default="", description="size of a new model by the dial, as 10M; empty: [shape]"
    )
    architecture: Literal["qwen3", "llama", "qwen3_moe", "mixtral"] = Field(
        default="qwen3", description="of a new model of params"
    )
    shape: ModelSettings = ModelSettings()
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    threads: int = Field(default=0, ge=0, description="0 leaves torch's own choice")
    compile: bool = Field(
        default=False, description="fuse what a layer does between its products (torch.compile)"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    parallel: ParallelSettings = ParallelSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    spikes: SpikeSettings = SpikeSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.model and self.params:
            raise ValueError("model and params can't both be set: a model in a folder has its size")
        if self.params and self.shape != ModelSettings(max_length=self.shape.max_length):
            raise ValueError("params and [shape] can't both be set, apart from shape.max_length")
        if self.architecture != "qwen3" and not self.params:
            raise ValueError("architecture is that of a new model whose size is given by params")
        return self

    @model_validator(mode="after")
    def _compiled_layers_are_whole(self) -> Self:
        parallel = self.parallel
        if self.compile and (parallel.zero_stage == 3 or parallel.together > 1):
            raise ValueError(
                "compile = true goes with parallel.zero_stage 0 to 2, and with tensor, sequence "
                "and pipeline at 1: what they do inside of a layer or around it can't be compiled"
            )
        return self

    @model_validator(mode="after")
    def _spikes_leave_a_checkpoint(self) -> Self:
        kept = self.checkpoint.every * self.checkpoint.keep_last
        if kept <= self.spikes.repeats:
            raise ValueError(
                f"checkpoint.every x checkpoint.keep_last = {kept} steps, and spikes.repeats = "
                f"{self.spikes.repeats}: no checkpoint from before the spikes would be left"
            )
        return self


def read_config(path: str | Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """A TOML file with ``section.key=value`` on top. Raises UsageError."""
    return TrainConfig(**read_tree(path, overrides))
