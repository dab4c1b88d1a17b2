"""Decides what is decayed, in which precision a model computes, and when an update is let pass.

Weight decay is for matrices: norm gains and biases are vectors, and decaying them towards zero
would fight what they are for. Embeddings are matrices here, as in most recipes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices with decay, vectors without; a group that would be empty is left out."""
    trained = [weight for weight in parameters if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def forward_dtype(wanted: str) -> torch.dtype:
    """bfloat16 or float32. ``auto`` takes bfloat16 where the hardware computes in it."""
    if wanted == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wanted]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that can be told to let a step pass without changing anything.

    ZeRO's optimisers refuse a gradient that is not finite by themselves, but take whatever the loss
    was; DeepSpeed's stage 0 in float32 looks at neither, and tells nobody the norm: there this
    optimiser clips by itself (``clip`` > 0).
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
