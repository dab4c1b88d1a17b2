"""Decides how a base model is trained: next-token prediction over packed rows, AdamW, one process.

The rate warms up linearly and falls along a half cosine to a tenth of its peak. Weights and
optimiser stay float32; the forward pass runs in bfloat16 where the processor has instructions for
it (without them it would be slower than float32, and no more exact).

Left out of the usual recipe: gradient accumulation, checkpoints on the way, data-parallel ranks.
A run of this loop takes minutes; a run that takes hours wants all three.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.packing import IGNORE, Rows
from pretrain.schedules import cosine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PROGRESS_EVERY = 10  # steps


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Length and pace of a training run."""

    steps: int = 1600
    rows_per_step: int = 8
    row_tokens: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    threads: int = 0  # 0 leaves torch's own choice

    def __post_init__(self) -> None:
        if min(self.steps, self.rows_per_step, self.row_tokens) < 1:
            raise ValueError("steps, rows_per_step and row_tokens must be at least 1")
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ValueError("learning_rate and max_grad_norm must be above 0")
        if self.warmup_steps < 0 or self.threads < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps, threads and weight_decay must not be negative")


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run did. ``interrupted`` is true when Ctrl-C ended it early."""

    losses: tuple[float, ...]  # mean per predicted token, one per step
    tokens: int  # that were trained on, padding not counted
    seconds: float
    dtype: str
    interrupted: bool


def train(
    model: PreTrainedModel, rows: Rows, settings: TrainSettings, *, seed: int = 0
) -> TrainReport:
    """Train in place. Equal inputs and thread counts give equal weights, bit for bit."""
    import torch

    from pretrain.optimizer import forward_dtype

    if len(rows.tokens) == 0:
        raise ValueError("there is nothing to train on: no document was packed")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dtype = forward_dtype(settings.dtype)
    optimizer = _optimizer(model, settings)
    losses: list[float] = []
    tokens, started, interrupted = 0, time.monotonic(), False
    model.train()
    try:
        for step, chosen in enumerate(_batches(len(rows.tokens), settings, seed)):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings)
            losses.append(_step(model, optimizer, rows, chosen, dtype, settings.max_grad_norm))
            tokens += int((rows.labels[chosen] != IGNORE).sum())
            _progress(step + 1, settings.steps, losses[-1], tokens, time.monotonic() - started)
    except KeyboardInterrupt:  # what was learnt so far is worth keeping
        interrupted = True
    model.eval()
    seconds = time.monotonic() - started
    return TrainReport(tuple(losses), tokens, seconds, str(dtype).split(".")[-1], interrupted)


def _step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    chosen: NDArray[np.int64],
    dtype: torch.dtype,
    max_grad_norm: float,
) -> float:
    import torch

    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = model(
            input_ids=torch.from_numpy(rows.tokens[chosen]).to(model.device),
            labels=torch.from_numpy(rows.labels[chosen]).to(model.device),
            position_ids=torch.from_numpy(rows.positions[chosen]).to(model.device),
            use_cache=False,
        ).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RuntimeError(f"the loss became {value}: lower learning_rate or lengthen warmup_steps")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def schedule(step: int, settings: TrainSettings) -> float:
    """The share of the peak rate used in a step (counted from 0)."""
    return cosine(step, warmup=settings.warmup_steps, total=settings.steps, floor=0.1)


def _optimizer(model: PreTrainedModel, settings: TrainSettings) -> torch.optim.Optimizer:
    import torch

    from pretrain.optimizer import parameter_groups

    groups = parameter_groups(model.parameters(), settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def _batches(rows: int, settings: TrainSettings, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers for each step: whole passes over the data, each in its own order."""
    rng = np.random.default_rng(seed)
    queue = np.empty(0, np.int64)
    for _ in range(settings.steps):
        while len(queue) < settings.rows_per_step:
            queue = np.concatenate([queue, rng.permutation(rows)])
        yield queue[: settings.rows_per_step]
        queue = queue[settings.rows_per_step :]


def _progress(step: int, steps: int, loss: float, tokens: int, seconds: float) -> None:
    if not sys.stderr.isatty() and step % (10 * _PROGRESS_EVERY) and step != steps:
        return
    if step % _PROGRESS_EVERY and step != steps:
        return
    end = "\r" if sys.stderr.isatty() and step != steps else "\n"
    line = f"pretrain {step}/{steps}  loss {loss:.3f}  {tokens / max(seconds, 1e-9):,.0f} tokens/s"
    print(line, end=end, file=sys.stderr, flush=True)
