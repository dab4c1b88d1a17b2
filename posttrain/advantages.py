"""Group rewards -> advantages, one pure function per estimator.

Each takes the rewards of one group, [G], with None where a sample could not be judged, and returns
[G] advantages with None in the same places. Unjudged samples take no part in the mean or the
standard deviation: they are absent, not zero.

GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1.1, outcome supervision):

    A_i = (r_i - mean(r)) / (std(r) + eps)

with the sample standard deviation (divisor G - 1). Left out: process supervision.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

Rewards = Sequence[float | None]
Advantages = list[float | None]
AdvantageFunction = Callable[[Rewards], Advantages]

_EPSILON = 1e-4  # keeps a group whose rewards differ by rounding from being blown up


def grpo(rewards_G: Rewards) -> Advantages:
    """Reward minus group mean, over group standard deviation. A group of equal rewards gives 0."""
    judged = [reward for reward in rewards_G if reward is not None]
    if len(judged) < 2 or max(judged) == min(judged):
        return [None if reward is None else 0.0 for reward in rewards_G]
    mean, deviation = statistics.fmean(judged), statistics.stdev(judged)
    return [
        None if reward is None else (reward - mean) / (deviation + _EPSILON) for reward in rewards_G
    ]


ADVANTAGES: dict[str, AdvantageFunction] = {"grpo": grpo}
