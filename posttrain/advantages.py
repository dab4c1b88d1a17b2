"""Rewards -> advantages, one pure function per estimator.

A *group* function sees the rewards of a whole step, ``StepRewards``, and returns one advantage per
sample in the same shape, [P][G]; a list of floats in place of one is an advantage for each model
turn. None, a sample that could not be judged, stays None and takes part in no mean and no
deviation: it is absent, not zero. ``per_group`` lifts a function of one group, [G] -> [G].

A *token* function (its needs name "tokens") sees one sample, ``TokenRewards``, and returns [T].
Nothing outside the mask is read: what the model did not write is part of the environment's answer,
so a token's successor is the next token that the model wrote. The result is 0 there.

Formulas below: r_i reward of sample i of a group of G, m and s the group's mean and sample
standard deviation (divisor G - 1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.registry import Count, NonNegative, Positive, Registry, Share, Whole

Values = Sequence[float | None]  # of one group, [G]
Advantage = float | None | list[float]  # a list: one for each model turn
StepAdvantages = list[list[Advantage]]  # [P][G]
Array = NDArray[Any]

_EPSILON = 1e-4  # keeps a group whose rewards differ by rounding from being blown up


@dataclass(frozen=True, slots=True)
class StepRewards:
    """What a group function may look at: all groups of one optimiser step."""

    values: tuple[tuple[float | None, ...], ...]  # [P][G]
    greedy: tuple[float | None, ...] = ()  # [P] reward of a greedy answer; needs "greedy"
    turn_values: tuple[tuple[tuple[float, ...], ...], ...] = ()  # [P][G][turns]; needs "turns"
    lengths: tuple[tuple[int, ...], ...] = ()  # [P][G] tokens written; needs "lengths"
    # [P][G] log pi - log pi_ref of the whole answer, None where not judged; needs "log_ratios"
    log_ratios: tuple[tuple[float | None, ...], ...] = ()

    def __post_init__(self) -> None:
        shape = [len(group) for group in self.values]
        if self.greedy and len(self.greedy) != len(shape):
            raise ValueError(f"{len(shape)} groups and {len(self.greedy)} greedy rewards")
        for name in ("turn_values", "lengths", "log_ratios"):
            found = [len(group) for group in getattr(self, name)]
            if found and found != shape:
                raise ValueError(f"{name} of shape {found} for values of shape {shape}")


@dataclass(frozen=True, slots=True)
class TokenRewards:
    """What a token function may look at: one sample, all [T]. Only the mask's tokens are read."""

    rewards: Array  # the outcome's on the last written token, a turn's on the last of the turn
    mask: NDArray[np.bool_]  # written by the model
    logprobs: Array  # the engine's
    values: Array | None = None  # the critic's, of the state before the token; needs "values"
    teacher_logprobs: Array | None = None  # needs "teacher"

    def __post_init__(self) -> None:
        arrays = (self.rewards, self.logprobs, self.values, self.teacher_logprobs)
        lengths = {len(self.mask), *(len(array) for array in arrays if array is not None)}
        if len(lengths) != 1:
            raise ValueError(f"TokenRewards arrays differ in length: {sorted(lengths)}")


ADVANTAGES: Registry[Callable[..., Any]] = Registry("advantage")


def per_group(function: Callable[..., list[float | None]]) -> Callable[..., StepAdvantages]:
    """Lift ``f(rewards_G, *, ...) -> advantages_G`` to all groups of a step.

    The lifted function has the settings and the docstring of ``function``, which stays reachable
    as ``__wrapped__``.
    """

    @wraps(function)
    def lifted(rewards: StepRewards, **settings: Any) -> StepAdvantages:
        return [list(function(values_G, **settings)) for values_G in rewards.values]

    return lifted


# one group


@ADVANTAGES.register("grpo")
@per_group
def grpo(rewards_G: Values) -> list[float | None]:
    """(r_i - m) / (s + 1e-4). GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1.2).

    A group of equal rewards gives 0. Left out: process supervision (see ``process``).
    """
    judged = [reward for reward in rewards_G if reward is not None]
    if len(judged) < 2 or max(judged) == min(judged):
        return _each(rewards_G, lambda reward: 0.0)
    mean, deviation = statistics.fmean(judged), statistics.stdev(judged)
    return _each(rewards_G, lambda reward: (reward - mean) / (deviation + _EPSILON))


@ADVANTAGES.register("dr_grpo")
@per_group
def dr_grpo(rewards_G: Values) -> list[float | None]:
    """r_i - m. Dr.GRPO (arXiv:2503.20783, section 3.2): without s, which favours groups that are
    nearly all right or nearly all wrong. Its other half is the aggregation "fixed".
    """
    judged = [reward for reward in rewards_G if reward is not None]
    if len(judged) < 2 or max(judged) == min(judged):
        return _each(rewards_G, lambda reward: 0.0)
    mean = statistics.fmean(judged)
    return _each(rewards_G, lambda reward: reward - mean)


@ADVANTAGES.register("rloo")
@per_group
def rloo(rewards_G: Values) -> list[float | None]:
    """r_i - (mean of the other G - 1). RLOO (arXiv:2402.14740; Kool et al. 2019).

    The baseline does not depend on sample i, so the gradient is unbiased. It is G / (G - 1) times
    ``dr_grpo``. A group with one judged sample has no others and gives 0.
    """
    judged = [reward for reward in rewards_G if reward is not None]
    if len(judged) < 2 or max(judged) == min(judged):
        return _each(rewards_G, lambda reward: 0.0)
    total, others = math.fsum(judged), len(judged) - 1
    return _each(rewards_G, lambda reward: reward - (total - reward) / others)


@ADVANTAGES.register("maxrl")
@per_group
def maxrl(rewards_G: Values) -> list[float | None]:
    """(r_i - m) / m, and 0 where m = 0. MaxRL (Maximum Likelihood RL, arXiv:2602.02710).

    For rewards 0 and 1 with success probability p its expected gradient is that of the first
    G - 1 terms of  log p = -sum_k (1 - p)^k / k :  hard prompts weigh up to G - 1 times more than
    under ``dr_grpo``. Raises ValueError for a negative reward, for which m means nothing.
    """
    judged = [reward for reward in rewards_G if reward is not None]
    if judged and min(judged) < 0:
        raise ValueError(f"advantage maxrl needs rewards of at least 0, got {min(judged)}")
    if len(judged) < 2 or max(judged) == min(judged):
        return _each(rewards_G, lambda reward: 0.0)
    mean = statistics.fmean(judged)
    return _each(rewards_G, lambda reward: (reward - mean) / mean)


@ADVANTAGES.register("pass_at_k")
@per_group
def pass_at_k(rewards_G: Values, *, k: Count = 4, std: bool = True) -> list[float | None]:
    """How much a sample helps the best of k. Pass@k training, analytic (arXiv:2508.10751).

    Every subset of k of the group's samples gets its best reward. With M and S the mean and
    (population) standard deviation over all C(G, k) subsets, and M_i the mean over the
    C(G - 1, k - 1) subsets that contain sample i:

        A_i = (M_i - M) / (S + 1e-4)          (``std=False``: M_i - M)

    For rewards 0 and 1 this is the paper's closed form; ranks extend it to any rewards: the best
    of a subset is the j-th smallest reward in C(j - 1, k - 1) subsets, and in C(j - 2, k - 2) of
    those with a given smaller one. Raises ValueError unless k is smaller than the group.
    """
    if k >= len(rewards_G):
        raise ValueError(f"advantage pass_at_k: k = {k} must be below the group's {len(rewards_G)}")
    order = sorted(i for i, reward in enumerate(rewards_G) if reward is not None)
    order.sort(key=lambda i: rewards_G[i] or 0.0)
    best = [float(rewards_G[i] or 0.0) for i in order]
    n = len(best)
    if n <= k or best[k - 1] == best[-1]:  # every subset has the same best
        return _each(rewards_G, lambda reward: 0.0)
    share = [math.comb(j, k - 1) / math.comb(n, k) for j in range(n)]
    mean = math.fsum(w * r for w, r in zip(share, best, strict=True))
    variance = math.fsum(w * (r - mean) ** 2 for w, r in zip(share, best, strict=True))
    scale = math.sqrt(variance) + _EPSILON if std else 1.0
    advantages: list[float | None] = [None] * len(rewards_G)
    for rank, i in enumerate(order):
        above = range(rank + 1, n) if k > 1 else range(0)
        terms = [math.comb(j - 1, k - 2) * best[j] for j in above]
        terms.append(math.comb(rank, k - 1) * best[rank])
        advantages[i] = (math.fsum(terms) / math.comb(n - 1, k - 1) - mean) / scale
    return advantages


# a whole step


@ADVANTAGES.register("reinforce")
def reinforce(
    rewards: StepRewards, *, baseline: Literal["batch", "none"] = "batch"
) -> StepAdvantages:
    """r_i - (mean of the step), or r_i alone. REINFORCE (Williams 1992)."""
    mean, _ = _moments(rewards.values) if baseline == "batch" else (0.0, 0.0)
    return [[*_each(values_G, lambda reward: reward - mean)] for values_G in rewards.values]


@ADVANTAGES.register("reinforce++")
def reinforce_plus_plus(rewards: StepRewards) -> StepAdvantages:
    """(r_i - mean) / (std + 1e-4) over the whole step. REINFORCE++ (arXiv:2501.03262).

    Over samples, each counting once. The paper's KL penalty is the setting ``kl`` with
    place "reward".
    """
    return _normalised([[*values_G] for values_G in rewards.values])


@ADVANTAGES.register("reinforce++_baseline")
def reinforce_plus_plus_baseline(rewards: StepRewards) -> StepAdvantages:
    """r_i - m, then over the whole step as ``reinforce++``. REINFORCE++-Baseline (2501.03262)."""
    centred: list[list[float | None]] = []
    for values_G in rewards.values:
        mean, _ = _moments([values_G])
        centred.append(_each(values_G, lambda reward, mean=mean: reward - mean))  # type: ignore[misc]
    return _normalised(centred)


@ADVANTAGES.register("remax", needs=("greedy",))
def remax(rewards: StepRewards) -> StepAdvantages:
    """r_i - (reward of the greedy answer to the same prompt). ReMax (arXiv:2310.10505).

    A group whose greedy answer could not be judged has no baseline: all its advantages are None.
    """
    if len(rewards.greedy) != len(rewards.values):
        raise ValueError("advantage remax needs the reward of a greedy answer to each prompt")
    found: StepAdvantages = []
    for values_G, greedy in zip(rewards.values, rewards.greedy, strict=True):
        found.append([None if r is None or greedy is None else r - greedy for r in values_G])
    return found


@ADVANTAGES.register("rejection", needs=("lengths",))
def rejection(
    rewards: StepRewards,
    *,
    threshold: float = 1.0,
    keep: Whole = 0,
) -> StepAdvantages:
    """1 for a sample that is kept, else 0: expert iteration, with the loss "sft".

    Kept are rewards of at least ``threshold``; with ``keep`` only so many of a group, the shortest
    (of equal length the first). Rejection-sampling fine-tuning (RAFT, arXiv:2304.06767; ReST,
    arXiv:2308.08998); the shortest first is ours.
    """
    if keep and len(rewards.lengths) != len(rewards.values):
        raise ValueError("advantage rejection needs the lengths of the samples")
    found: StepAdvantages = []
    for p, values_G in enumerate(rewards.values):
        kept = [i for i, r in enumerate(values_G) if r is not None and r >= threshold]
        if keep:
            kept = sorted(kept, key=lambda i: rewards.lengths[p][i])[:keep]
        found.append([None if r is None else float(i in kept) for i, r in enumerate(values_G)])
    return found


@ADVANTAGES.register("online_dpo", needs=("log_ratios",))
def online_dpo(rewards: StepRewards, *, beta: Positive = 0.1) -> StepAdvantages:
    """+-beta sigmoid(-beta (h_w - h_l)) for the best and the worst of a group, 0 for the others.

    h = log pi - log pi_ref of the whole answer, w the last of the best rewards, l the first of the
    worst. With the loss "reinforce" the gradient of these advantages is that of the pair's DPO loss

        -log sigmoid(beta (h_w - h_l))

    whose derivatives by log pi(w) and log pi(l) are -+ those numbers (Rafailov et al.,
    arXiv:2305.18290, section 4), on pairs the policy wrote itself (OAIF, arXiv:2402.04792). It is
    exact for one update per step, which this loop makes. A group of equal rewards is a tie and
    gives 0. Left out: pairs of the samples in between.
    """
    if len(rewards.log_ratios) != len(rewards.values):
        raise ValueError("advantage online_dpo needs the answers' log-prob ratios to the reference")
    found: StepAdvantages = []
    for values_G, ratios_G in zip(rewards.values, rewards.log_ratios, strict=True):
        advantages: list[Advantage] = [*_each(values_G, lambda reward: 0.0)]
        judged = [i for i, reward in enumerate(values_G) if reward is not None]
        judged.sort(key=lambda i: values_G[i] or 0.0)
        if judged and values_G[worst := judged[0]] != values_G[best := judged[-1]]:
            margin = beta * ((ratios_G[best] or 0.0) - (ratios_G[worst] or 0.0))
            weight = beta * _sigmoid(-margin)
            advantages[best], advantages[worst] = weight, -weight
        found.append(advantages)
    return found


@ADVANTAGES.register("turns", needs=("turns",))
def turns(rewards: StepRewards, *, gamma: Share = 1.0, std: bool = True) -> StepAdvantages:
    """One advantage per model turn: its reward-to-go, compared with the group's at the same turn.

    With q_t the reward of turn t, T turns, and the sample's own reward r added to the last:

        R_t = sum_{u >= t} gamma^(u - t) q_u + gamma^(T - 1 - t) r
        A_t = (R_t - mean_t) / (std_t + 1e-4)      (``std=False``: R_t - mean_t)

    mean_t and std_t are over the members of the group that have a turn t; where there is only one,
    or all are equal, A_t = 0. With one turn and no turn rewards this is ``grpo``.
    """
    if len(rewards.turn_values) != len(rewards.values):
        raise ValueError("advantage turns needs the rewards of the turns")
    found: StepAdvantages = []
    for values_G, turns_G in zip(rewards.values, rewards.turn_values, strict=True):
        to_go = [
            [] if value is None else _to_go([*own[:-1], own[-1] + value] if own else [], gamma)
            for value, own in zip(values_G, turns_G, strict=True)
        ]
        longest = max(map(len, to_go), default=0)
        columns = [[own[t] if t < len(own) else None for own in to_go] for t in range(longest)]
        normal = [_of_group(column, std) for column in columns]
        found.append(
            [
                None if value is None else [normal[t][i] or 0.0 for t in range(len(to_go[i]))]
                for i, value in enumerate(values_G)
            ]
        )
    return found


# tokens


@ADVANTAGES.register("gae", needs=("tokens", "values"))
def gae(
    sample: TokenRewards,
    *,
    gamma: Share = 1.0,
    lam: Share = 1.0,
    whiten: bool = True,
    value_clip: NonNegative = 0.2,
    critic_rate: Positive = 1.0,
    critic_warmup: Whole = 0,
) -> Array:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), over the written tokens.

        d_t = r_t + gamma V_{t+1} - V_t,    A_t = d_t + gamma lam A_{t+1}

    V_{t+1} is the value before the next written token, 0 after the last. The other settings are
    for who trains the critic: ``value_clip`` bounds its change in one step (0: none),
    ``critic_rate`` multiplies the policy's learning rate, ``critic_warmup`` is for how many steps
    it learns alone. ``whiten`` asks the step to call ``whiten`` afterwards.
    """
    if sample.values is None:
        raise ValueError("advantage gae needs the critic's values")
    rewards, values = (
        np.asarray(a, np.float64)[sample.mask] for a in (sample.rewards, sample.values)
    )
    deltas = rewards + gamma * np.append(values[1:], 0.0)[: len(values)] - values
    return _spread(sample.mask, _to_go(deltas.tolist(), gamma * lam))


def gae_returns(sample: TokenRewards, advantages: Array) -> Array:
    """What the critic should have said, A_t + V_t (before whitening), [T]; 0 outside the mask."""
    if sample.values is None:
        raise ValueError("gae_returns needs the critic's values")
    return np.where(sample.mask, advantages + np.where(sample.mask, sample.values, 0.0), 0.0)


@ADVANTAGES.register("process", needs=("tokens",))
def process(sample: TokenRewards, *, gamma: Share = 1.0, whiten: bool = True) -> Array:
    """Reward-to-go of each token, sum_{u >= t} gamma^(u - t) r_u: rewards given to tokens.

    GRPO's process supervision (arXiv:2402.03300, section 4.1.3) with the normalisation over the
    step (``whiten``) in place of the group.
    """
    rewards = np.asarray(sample.rewards, np.float64)[sample.mask]
    return _spread(sample.mask, _to_go(rewards.tolist(), gamma))


@ADVANTAGES.register("distill", needs=("tokens", "teacher"))
def distill(sample: TokenRewards, *, teacher: str = "", clip: Positive = 10.0) -> Array:
    """log teacher(o_t) - log student(o_t), clipped: on-policy distillation by reverse KL.

    On the student's own samples its mean is -KL(student, teacher), so raising what the teacher
    finds likelier descends the reverse KL (MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649). A
    token answers for its own KL alone: the effect on later tokens is left out, as in GKD.
    ``teacher`` is the URL of the server that is asked; it must have the student's tokenizer.
    """
    if sample.teacher_logprobs is None:
        raise ValueError("advantage distill needs the teacher's log-probs")
    gap = np.asarray(sample.teacher_logprobs, np.float64) - sample.logprobs
    return np.where(sample.mask, np.clip(gap, -clip, clip), 0.0)


def whiten(advantages: Sequence[Array], masks: Sequence[NDArray[np.bool_]]) -> list[Array]:
    """Mean 0 and standard deviation 1 over all written tokens of a step; 0 outside the masks.

    Equal advantages everywhere give 0.
    """
    written = [np.asarray(a, np.float64)[m] for a, m in zip(advantages, masks, strict=True)]
    every = np.concatenate([np.zeros(0), *written])
    if len(every) < 2 or every.min() == every.max():
        return [np.zeros(len(mask)) for mask in masks]
    mean, deviation = every.mean(), every.std(ddof=1)
    return [
        _spread(mask, (own - mean) / (deviation + 1e-8))
        for own, mask in zip(written, masks, strict=True)
    ]


# parts


def _each(values_G: Values, advantage: Callable[[float], float]) -> list[float | None]:
    """``advantage`` of every reward; None stays None."""
    return [None if reward is None else advantage(reward) for reward in values_G]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _moments(values: Iterable[Values]) -> tuple[float, float]:
    """Mean and sample standard deviation of all that was judged; 0 where there is too little."""
    judged = [value for values_G in values for value in values_G if value is not None]
    mean = statistics.fmean(judged) if judged else 0.0
    return mean, statistics.stdev(judged) if len(judged) > 1 else 0.0


def _normalised(values: Sequence[Values]) -> StepAdvantages:
    """Over the whole step: minus the mean, over the standard deviation."""
    widths = [len(values_G) for values_G in values]
    flat = iter(_of_group([value for values_G in values for value in values_G], std=True))
    return [[next(flat) for _ in range(width)] for width in widths]


def _of_group(values: Values, std: bool) -> list[float | None]:
    one: Any = grpo if std else dr_grpo
    found: list[float | None] = one.__wrapped__(values)
    return found


def _to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """sum_{u >= t} gamma^(u - t) r_u for every t."""
    found, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        found.append(later)
    return found[::-1]


def _spread(mask: NDArray[np.bool_], written: Any) -> Array:
    """The written tokens' numbers in their places, [T], and 0 elsewhere."""
    found = np.zeros(len(mask), np.float64)
    found[mask] = written
    return found
