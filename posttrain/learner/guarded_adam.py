"""The optimiser: AdamW that lets a step pass where the loss or the gradient is not finite.

ZeRO's optimisers refuse such a gradient by themselves, but take whatever the loss was; DeepSpeed's
stage 0 in float32 looks at neither.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that can be told to let a step pass without doing anything.

    With ``clip`` it clips the gradient itself: DeepSpeed's stage 0 in float32 clips too, but tells
    nobody the norm, and does not look whether it is finite.
    """

    clip: float = 0.0
    veto: bool = False
    applied: bool = False
    norm: float = math.nan  # of the gradient before clipping; only with ``clip``

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights unless vetoed, or unless the norm is not finite."""
        if self.clip:
            owned = [p for group in self.param_groups for p in group["params"]]
            self.norm = float(nn.utils.clip_grad_norm_(owned, self.clip))
            self.veto = self.veto or not math.isfinite(self.norm)
        if not self.veto:
            super().step(closure)
            self.applied = True


def update(engine: Any, adam: GuardedAdamW, loss: float) -> str:
    """Apply the gradient that DeepSpeed's ``engine`` holds of this loss; a collective.

    Returns why nothing was changed, if so: every rank then refuses, and the gradient is gone.
    """
    adam.applied, adam.veto = False, not math.isfinite(loss)
    engine.step()
    if adam.applied:
        return ""
    _forget_gradient(engine)
    return "the gradient's norm is not finite" if math.isfinite(loss) else f"the loss is {loss}"


def gradient_norm(engine: Any, adam: GuardedAdamW) -> float:
    """Of the last update, before clipping, over all ranks."""
    norm = adam.norm if adam.clip else engine.get_global_grad_norm()
    return math.nan if norm is None else float(norm)


def _forget_gradient(engine: Any) -> None:
    """Drop the gradient of a step that was refused.

    ZeRO-Offload in bfloat16 (DeepSpeed 0.19.8, stages 1 and 2) keeps it and adds the next one to
    it: after one infinity every later step would be refused.
    """
    kept = getattr(engine.optimizer, "averaged_gradients", {})
    for group in kept:
        kept[group] = None
