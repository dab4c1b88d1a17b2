"""Policy-gradient losses: what one token adds, summed. Pure functions, one per algorithm.

A loss takes per-token tensors [N] and returns the *sum* over the tokens whose mask is True, with a
dictionary of metric sums over the same tokens. The learner divides by the number of loss tokens of
the whole step (all rows, all ranks), so that how a batch is cut into rows and ranks cannot matter.

With  x_t = log pi(o_t) - log pi_old(o_t)  and  r_t = exp(x_t), where pi_old is the engine that
sampled the token:

    ppo_clip (PPO, arXiv:1707.06347, eq. 7; the two bounds of DAPO, arXiv:2503.14476, section 3.1)
        L_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)
              + kl_coef k3_t - entropy_coef H_t
    k3 against a frozen reference (GRPO, arXiv:2402.03300, eq. 4; Schulman 2020, "Approximating KL
    divergence"):    y_t = log pi_ref(o_t) - log pi(o_t),   k3_t = exp(y_t) - y_t - 1

Averaging over all tokens of the step is DAPO's token-level loss (its section 3.3).

Left out. PPO's value loss: there is no critic. GRPO's mean over each sequence first (1/|o_i|),
which weighs tokens of long answers less. DAPO's dynamic sampling and soft length penalty, which
belong to sampling and to rewards. An importance weight on k3: pi and pi_old are at most a few
steps apart.

To add an algorithm: write one function of this shape and put it into ``LOSSES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from posttrain.config import AlgorithmSettings

Metrics = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TokenTensors:
    """Everything a loss may look at. All [N] float32 but the mask, [N] bool."""

    logprobs: Tensor  # the learner's, with gradient
    old_logprobs: Tensor  # the engine's, when it sampled the token
    advantages: Tensor
    mask: Tensor
    entropy: Tensor | None = None  # of the learner's distribution
    ref_logprobs: Tensor | None = None  # the frozen reference's; there when kl_coef > 0

    def masked(self, values: Tensor) -> Tensor:
        """``values`` with 0 outside the mask: what stands there cannot leak, NaN included."""
        return torch.where(self.mask, values, torch.zeros_like(values))


LossFunction = Callable[[TokenTensors, "AlgorithmSettings"], tuple[Tensor, Metrics]]


def k3(log_ratio: Tensor) -> Tensor:
    """exp(x) - x - 1 per token: unbiased for KL(p, q) when x = log q - log p of samples of p."""
    return torch.expm1(log_ratio) - log_ratio


def ppo_clip(tokens: TokenTensors, settings: AlgorithmSettings) -> tuple[Tensor, Metrics]:
    """Clipped surrogate, optional KL to a reference, optional entropy bonus; see the module."""
    log_ratio = tokens.masked(tokens.logprobs - tokens.old_logprobs)
    advantages = tokens.masked(tokens.advantages)
    ratio = torch.exp(log_ratio)
    bounded = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    free, clipped = ratio * advantages, bounded * advantages
    loss = -torch.minimum(free, clipped).sum()
    metrics = _ratio_metrics(tokens, log_ratio, ratio)
    metrics["clipped"] = tokens.masked((clipped < free).float()).sum()
    if settings.kl_coef > 0:
        if tokens.ref_logprobs is None:
            raise ValueError("kl_coef > 0 needs the reference policy's log-probs")
        kl_ref = k3(tokens.masked(tokens.ref_logprobs - tokens.logprobs)).sum()
        loss = loss + settings.kl_coef * kl_ref
        metrics["kl_ref"] = kl_ref.detach()
    if settings.entropy_coef > 0:
        if tokens.entropy is None:
            raise ValueError("entropy_coef > 0 needs the policy's entropy")
        loss = loss - settings.entropy_coef * tokens.masked(tokens.entropy).sum()
    return loss, metrics


@torch.no_grad()
def _ratio_metrics(tokens: TokenTensors, log_ratio: Tensor, ratio: Tensor) -> Metrics:
    """How far the learner is from the engine. ``*_max`` is a maximum, everything else a sum.

    ``kl`` estimates KL(engine, learner) by k3, from the engine's own samples.
    """
    masked_ratio = tokens.masked(ratio)
    metrics = {
        "ratio": masked_ratio.sum(),
        "ratio_max": masked_ratio.max() if len(ratio) else masked_ratio.sum(),
        "kl": k3(log_ratio).sum(),
        "logprob_gap": log_ratio.abs().sum(),
    }
    if tokens.entropy is not None:
        metrics["entropy"] = tokens.masked(tokens.entropy).sum()
    return {name: value.detach() for name, value in metrics.items()}


LOSSES: dict[str, LossFunction] = {"ppo_clip": ppo_clip}
