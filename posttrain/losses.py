"""Policy-gradient losses: what each token adds. Pure functions, one per algorithm.

A loss takes the tokens of a row and returns its value for each of them, [N], with a dictionary of
metric sums. ``policy_loss`` composes the whole:

    sum_t  a_t (w_t L_t + kl_coef K_t - entropy_coef H_t + sft_coef S_t)

with L the loss, w the off-policy correction (``corrections``), K the KL estimate against a frozen
reference, H the entropy, S the negative log-likelihood of samples with a positive advantage, and a
the weights of the aggregation. The learner divides by ``denominator`` of the whole step (all rows,
all ranks), so that how a batch is cut into rows and ranks cannot matter.

The ratio of a loss is  r_t = pi(o_t) / pi_base(o_t).  Without a correction the base is the engine
that sampled the token. With one the tokens are *decoupled*: the base is the learner when the step
began (pi_prox), and the correction accounts for pi_prox / pi_engine (Hilton et al.,
arXiv:2110.00641; for language models AReaL, arXiv:2505.24298). With one update per step pi_prox is
pi itself: the ratio is 1 and carries the gradient.

Left out: PPO's value loss, which belongs to the critic; an importance weight on the KL terms, whose
samples are at most a few steps old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from posttrain.corrections import CORRECTIONS, Correction, correction_metrics
from posttrain.registry import Bound, NonNegative, Registry, Share
from posttrain.token_tensors import TokenTensors as TokenTensors  # part of this module's face

Metrics = dict[str, Tensor]
TokenLoss = tuple[Tensor, Metrics]

LossFunction = Callable[..., TokenLoss]
LOSSES: Registry[LossFunction] = Registry("loss")
KlEstimate = Callable[..., Tensor]
Weights = Callable[..., Tensor]
KLS: Registry[KlEstimate] = Registry("kl")
AGGREGATIONS: Registry[Weights] = Registry("aggregation")


def _off_or_above_one(value: float) -> float:
    if value != 0 and value <= 1:
        raise ValueError("must be 0 (off) or above 1")
    return value


# losses


@LOSSES.register("ppo_clip")
def ppo_clip(
    tokens: TokenTensors,
    *,
    low: Share = 0.2,
    high: NonNegative = 0.28,
    dual: Annotated[float, AfterValidator(_off_or_above_one)] = 0.0,
) -> TokenLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A). PPO (arXiv:1707.06347, eq. 7).

    Two bounds: DAPO (arXiv:2503.14476, section 3.1, "clip-higher"). With ``dual`` > 1, and A < 0,
    the loss is at most -dual A: dual-clip PPO (arXiv:1912.09729), for tokens that became
    far likelier than they were and keep a ratio without bound.
    """
    ratio = torch.exp(tokens.logprobs - tokens.base_logprobs)
    free = ratio * tokens.advantages
    bounded = torch.clamp(ratio, 1 - low, 1 + high) * tokens.advantages
    gain, clipped = torch.minimum(free, bounded), bounded < free
    if dual:
        floor = dual * tokens.advantages
        far = (tokens.advantages < 0) & (gain < floor)
        gain, clipped = torch.where(far, floor, gain), clipped | far
    return -gain, {"clipped": _count(tokens, clipped)}


@LOSSES.register("reinforce")
def reinforce(tokens: TokenTensors) -> TokenLoss:
    """-A log pi(o). REINFORCE (Williams 1992): no ratio, so on-policy or with a correction."""
    return -tokens.advantages * tokens.logprobs, {}


@LOSSES.register("gspo")
def gspo(tokens: TokenTensors, *, low: NonNegative = 3e-4, high: NonNegative = 4e-4) -> TokenLoss:
    """-min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t log r_t). GSPO (arXiv:2507.18071).

    One ratio per sequence, the geometric mean of its tokens' (eq. 5 to 7), clipped as a whole.
    Every token carries its sequence's loss, so the mean over tokens of a sequence (aggregation
    "sequence") is the paper's. The gradient is that of s where a sequence has one advantage; where
    it differs by token, each token's goes to that token (the paper's GSPO-token, section 4.3).
    """
    mean = tokens.per_sequence(tokens.logprobs - tokens.base_logprobs) / _at_least_one(tokens)
    own = tokens.logprobs - tokens.logprobs.detach()  # 0, with the token's gradient
    ratio = torch.exp(tokens.spread(mean.detach()) + own)
    free = ratio * tokens.advantages
    bounded = torch.clamp(ratio, 1 - low, 1 + high) * tokens.advantages
    return -torch.minimum(free, bounded), {"clipped": _count(tokens, bounded < free)}


@LOSSES.register("cispo")
def cispo(tokens: TokenTensors, *, low: Share = 1.0, high: NonNegative = 4.0) -> TokenLoss:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi(o). CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4).

    The ratio is a bounded weight without gradient, so no token is dropped from the update. The
    paper sets no lower bound (``low`` = 1) and tunes the upper one without giving its value.
    """
    ratio = torch.exp(tokens.logprobs - tokens.base_logprobs).detach()
    weight = torch.clamp(ratio, 1 - low, 1 + high)
    loss = -weight * tokens.advantages * tokens.logprobs
    return loss, {"clipped": _count(tokens, weight != ratio)}


@LOSSES.register("sft")
def sft(tokens: TokenTensors) -> TokenLoss:
    """-max(A, 0) log pi(o): likelihood of the samples that were kept, weighted by the advantage."""
    return -tokens.advantages.clamp(min=0) * tokens.logprobs, {}


# KL against the reference. y = log pi_ref(o) - log pi(o) on samples of pi (Schulman 2020,
# "Approximating KL divergence"). ``coef`` and ``place`` are for whoever adds the term: to the loss
# (``policy_loss``), or from the token's reward (the step). ``reference`` is for whoever asks the
# reference: the URL of a server with its model, or empty for the start policy.

Place = Literal["loss", "reward"]
Off = Annotated[float, Field(ge=0.0, le=0.0)]


@KLS.register("none")
def no_kl(log_ratio: Tensor, *, coef: Off = 0.0, place: Place = "loss") -> Tensor:
    """No reference policy."""
    return torch.zeros_like(log_ratio)


@KLS.register("k1")
def k1(
    log_ratio: Tensor, *, coef: NonNegative = 0.001, place: Place = "loss", reference: str = ""
) -> Tensor:
    """-y: unbiased for KL(pi, ref). For the reward: in the loss its gradient is 0 on average."""
    return -log_ratio


@KLS.register("k2")
def k2(
    log_ratio: Tensor, *, coef: NonNegative = 0.001, place: Place = "loss", reference: str = ""
) -> Tensor:
    """y^2 / 2: biased as a value; its gradient in the loss is that of KL(pi, ref)."""
    return log_ratio.square() / 2


@KLS.register("k3")
def k3(
    log_ratio: Tensor, *, coef: NonNegative = 0.001, place: Place = "loss", reference: str = ""
) -> Tensor:
    """exp(y) - y - 1: unbiased for KL(pi, ref), never negative. GRPO (arXiv:2402.03300, eq. 4).

    Its gradient in the loss is that of the other direction, KL(ref, pi).
    """
    return torch.expm1(log_ratio) - log_ratio


# aggregation: the weight of each token, and what the sum is divided by


@AGGREGATIONS.register("token")
def token(tokens: TokenTensors) -> Tensor:
    """Mean over all tokens of the step. DAPO (arXiv:2503.14476, section 3.3)."""
    return torch.ones_like(tokens.old_logprobs)


@AGGREGATIONS.register("sequence")
def sequence(tokens: TokenTensors) -> Tensor:
    """Mean over sequences of the mean over their tokens. GRPO (arXiv:2402.03300, eq. 3).

    A token of a long answer counts less.
    """
    return tokens.spread(1 / _at_least_one(tokens))


@AGGREGATIONS.register("fixed")
def fixed(tokens: TokenTensors) -> Tensor:
    """Sum over tokens, over sequences times the longest allowed. Dr.GRPO (arXiv:2503.20783)."""
    return torch.ones_like(tokens.old_logprobs)


def denominator(name: str, n_loss_tokens: int, n_sequences: int, max_tokens: int) -> float:
    """What the weighted sum of the whole step is divided by.

    ``n_sequences`` counts those with a loss token, over all rows and ranks; ``max_tokens`` is the
    longest completion allowed.
    """
    if name == "token":
        return float(n_loss_tokens)
    if name == "sequence":
        return float(n_sequences)
    if name == "fixed":
        return float(n_sequences * max_tokens)
    raise ValueError(f"aggregation {name!r} has no denominator; known: {', '.join(AGGREGATIONS)}")


# the whole


@dataclass(frozen=True, slots=True)
class LossParts:
    """The chosen functions and coefficients of ``policy_loss``."""

    loss: Bound[LossFunction] = field(default_factory=lambda: LOSSES.resolve("ppo_clip"))
    correction: Bound[Correction] = field(default_factory=lambda: CORRECTIONS.resolve("none"))
    kl: Bound[KlEstimate] = field(default_factory=lambda: KLS.resolve("none"))
    aggregation: Bound[Weights] = field(default_factory=lambda: AGGREGATIONS.resolve("token"))
    entropy_coef: float = 0.0
    sft_coef: float = 0.0

    @property
    def corrected(self) -> bool:
        """Whether the loss's ratio is against the learner when the step began."""
        return self.correction.name != "none"

    @property
    def kl_coef(self) -> float:
        """Of the KL term in the loss."""
        return kl_coef(self.kl, "loss")


def kl_coef(kl: Bound[KlEstimate], place: Place) -> float:
    """The weight of the KL term there, 0 where it belongs to the other place.

    A user's function without the settings ``coef`` and ``place`` counts as it is, in the loss.
    """
    here = kl.arguments.get("place", "loss") == place
    return float(kl.arguments.get("coef", 1.0)) if here else 0.0


def policy_loss(tokens: TokenTensors, parts: LossParts) -> TokenLoss:
    """The row's weighted loss sum, a scalar, with metric sums (``*_max``: maxima).

    Raises ValueError when a term's tensor is missing.
    """
    tokens = replace(tokens.cleaned(), decoupled=parts.corrected)
    per_token, metrics = parts.loss(tokens)
    metrics = _distance(tokens) | metrics
    if parts.corrected:
        with torch.no_grad():
            gap = tokens.start_logprobs - tokens.old_logprobs
            weights = parts.correction(gap, tokens)
            metrics |= correction_metrics(weights, tokens)
        per_token = per_token * weights
    if tokens.ref_logprobs is not None:
        log_ratio = tokens.ref_logprobs - tokens.logprobs
        metrics["kl_ref"] = tokens.masked(k3(log_ratio)).sum().detach()
        if parts.kl_coef:
            per_token = per_token + parts.kl_coef * parts.kl(log_ratio)
    elif parts.kl_coef:
        raise ValueError(f"kl {parts.kl} needs the reference policy's log-probs")
    if parts.entropy_coef:
        if tokens.entropy is None:
            raise ValueError("entropy_coef > 0 needs the policy's entropy")
        per_token = per_token - parts.entropy_coef * tokens.entropy
    if parts.sft_coef:
        kept = (tokens.advantages > 0).to(per_token.dtype)
        per_token = per_token - parts.sft_coef * kept * tokens.logprobs
    total = tokens.masked(parts.aggregation(tokens) * per_token).sum()
    return total, {name: value.detach() for name, value in metrics.items()}


@torch.no_grad()
def _distance(tokens: TokenTensors) -> Metrics:
    """How far the learner is from the engine.

    ``kl`` estimates KL(engine, learner) by k3, from the engine's own samples.
    """
    log_ratio = tokens.masked(tokens.logprobs - tokens.old_logprobs)
    ratio = tokens.masked(torch.exp(log_ratio))
    metrics = {
        "ratio": ratio.sum(),
        "ratio_sq": ratio.square().sum(),
        "ratio_max": ratio.max() if len(ratio) else ratio.sum(),
        "kl": k3(log_ratio).sum(),
        "logprob_gap": log_ratio.abs().sum(),
    }
    if tokens.entropy is not None:
        metrics["entropy"] = tokens.masked(tokens.entropy).sum()
    return metrics


def _count(tokens: TokenTensors, hits: Tensor) -> Tensor:
    return tokens.masked(hits.to(tokens.old_logprobs.dtype)).sum()


def _at_least_one(tokens: TokenTensors) -> Tensor:
    return tokens.lengths().clamp(min=1)
