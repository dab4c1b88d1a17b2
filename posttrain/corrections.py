"""Off-policy corrections: how much a token counts whose engine was not quite the learner.

The engine that sampled a token and the learner that trains on it never agree exactly: other
kernels, other precision, and weights that are some steps older. With

    x_t = log pi_prox(o_t) - log pi_old(o_t)

(``prox`` the learner when the step began, ``old`` the engine) the policy gradient on the engine's
samples is unbiased when each token is weighted by an importance ratio, and has a variance that
must be bounded. A correction takes x [N] and the tokens and returns weights [N] without gradient,
which multiply the loss; the loss's own ratio is then pi / pi_prox (``losses``).

``low`` is at most 1 and ``high`` and ``cap`` at least 1: where engine and learner agree, nothing is
cut. x is limited to +-20 before exp.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.registry import AtLeastOne, Registry, Share
from posttrain.token_tensors import TokenTensors

Correction = Callable[..., Tensor]
CORRECTIONS: Registry[Correction] = Registry("correction")

_LIMIT = 20.0  # exp(20) = 4.9e8; beyond it a log-ratio tells nothing that a bound does not


@CORRECTIONS.register("none")
def none(log_ratio: Tensor, tokens: TokenTensors) -> Tensor:
    """w_t = 1: the engine is taken for the learner, and the loss's ratio is pi / pi_old."""
    return torch.ones_like(log_ratio)


@CORRECTIONS.register("tis")
def tis(log_ratio: Tensor, tokens: TokenTensors, *, cap: AtLeastOne = 2.0) -> Tensor:
    """w_t = min(exp x_t, cap): truncated importance sampling of each token."""
    return _ratio(log_ratio).clamp(max=cap)


@CORRECTIONS.register("icepop")
@CORRECTIONS.register("mis")
def mis(
    log_ratio: Tensor, tokens: TokenTensors, *, low: Share = 0.5, high: AtLeastOne = 5.0
) -> Tensor:
    """w_t = exp x_t within [low, high], else 0: masked importance sampling of each token."""
    return _within(_ratio(log_ratio), low, high, keep=_ratio(log_ratio))


@CORRECTIONS.register("sequence_tis")
def sequence_tis(log_ratio: Tensor, tokens: TokenTensors, *, cap: AtLeastOne = 2.0) -> Tensor:
    """w_t = min(exp sum_u x_u, cap): one truncated ratio for all tokens of a sequence."""
    return tokens.spread(_ratio(tokens.per_sequence(log_ratio)).clamp(max=cap))


@CORRECTIONS.register("sequence_mask")
def sequence_mask(
    log_ratio: Tensor, tokens: TokenTensors, *, low: Share = 0.0, high: AtLeastOne = 3.0
) -> Tensor:
    """w_t = exp sum_u x_u within [low, high], else 0: the sequence's ratio, or nothing of it."""
    ratio = _ratio(tokens.per_sequence(log_ratio))
    return tokens.spread(_within(ratio, low, high, keep=ratio))


@CORRECTIONS.register("geometric_mask")
def geometric_mask(
    log_ratio: Tensor, tokens: TokenTensors, *, low: Share = 0.99, high: AtLeastOne = 1.01
) -> Tensor:
    """w_t = 1 when exp(mean_u x_u) is within [low, high], else 0: drop sequences that drifted.

    The geometric mean does not shrink with length as the product does, and is no importance
    ratio: what is kept keeps its bias.
    """
    mean = tokens.per_sequence(log_ratio) / tokens.lengths().clamp(min=1)
    ratio = _ratio(mean)
    return tokens.spread(_within(ratio, low, high, keep=torch.ones_like(ratio)))


def correction_metrics(weights: Tensor, tokens: TokenTensors) -> dict[str, Tensor]:
    """Sums over the loss tokens, so that they add over rows and ranks, and the largest weight.

    Means per token of the step give the mean weight, the share of weight 0, and with
    ``correction_weight ** 2 / correction_weight_sq`` the effective sample size, as a share of the
    tokens: (sum w)^2 / (N sum w^2).
    """
    zero = (weights == 0).to(weights.dtype)
    inside = tokens.masked(weights)
    return {
        "correction_weight": inside.sum(),
        "correction_weight_sq": inside.square().sum(),
        "correction_weight_max": inside.max() if len(inside) else inside.sum(),
        "correction_masked": tokens.masked(zero).sum(),
    }


def _ratio(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp(-_LIMIT, _LIMIT))


def _within(ratio: Tensor, low: float, high: float, *, keep: Tensor) -> Tensor:
    return torch.where((ratio >= low) & (ratio <= high), keep, torch.zeros_like(ratio))
