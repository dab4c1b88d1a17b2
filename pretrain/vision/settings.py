"""Decides what can be asked of the training of a model that sees.

The defaults are those of LLaVA-1.5 (Liu et al., arXiv:2310.03744, table 9): no weight decay, a
cosine with 3 % of warm-up, stage 1 at 1e-3 on 256 rows, stage 2 at 2e-5 on 128. LLaVA-NeXT trains
the tower as well in stage 2, at a tenth of the rate: ``tower_rate = 2e-6``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pretrain.checked_settings import CheckedSettings


class StageSettings(CheckedSettings):
    """One stage: rows, and how they are learnt from."""

    data: Path = Field(description="JSONL file of rows; see rows.py")
    rate: float = Field(gt=0, description="peak learning rate")
    rows: int = Field(ge=1, description="rows of a step")
    epochs: float = Field(default=1.0, gt=0)
    steps: int = Field(default=0, ge=0, description="0: by epochs")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    tower_rate: float = Field(default=0.0, ge=0, description="of the vision tower; 0: frozen")


class Stage1(StageSettings):
    """The projector alone."""

    rate: float = Field(default=1e-3, gt=0)
    rows: int = Field(default=256, ge=1)


class Stage2(StageSettings):
    """Projector and language model."""

    rate: float = Field(default=2e-5, gt=0)
    rows: int = Field(default=128, ge=1)


class VisionConfig(CheckedSettings):
    """A whole run: stage 1, stage 2, or both."""

    out: Path = Field(description="folder of the run; the models appear in its stage1/, stage2/")
    model: str = Field(description="folder of the model to begin with")
    held_out: Path | None = Field(default=None, description="JSONL file of rows to measure with")
    stage1: Stage1 | None = None
    stage2: Stage2 | None = None
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    threads: int = Field(default=0, ge=0, description="0 leaves torch's own choice")
    workers: int = Field(default=0, ge=0, description="processes that read pictures ahead")
    micro_rows: int = Field(default=8, ge=1, description="rows at once; the rest is accumulated")
    checkpoint_every: int = Field(default=500, ge=1, description="steps")
    report_every: int = Field(default=10, ge=1, description="steps between two lines")

    @property
    def stages(self) -> dict[int, StageSettings]:
        """Those that were asked for, in their order."""
        return {n: one for n, one in ((1, self.stage1), (2, self.stage2)) if one is not None}

    @model_validator(mode="after")
    def _has_stages(self) -> Self:
        if not self.stages:
            raise ValueError("a run needs a section stage1, stage2, or both")
        for number, stage in self.stages.items():
            if stage.rows > self.micro_rows and stage.rows % self.micro_rows:
                raise ValueError(
                    f"stage{number}.rows = {stage.rows} is no multiple of micro_rows = "
                    f"{self.micro_rows}"
                )
        return self
