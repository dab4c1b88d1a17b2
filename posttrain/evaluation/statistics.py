"""Numbers over samples of tasks: majority votes, intervals by resampling tasks, paired tests.

Tasks are the units everywhere: samples of one task are not independent, so it is tasks that are
resampled. pass@k is ``posttrain.held_out.pass_at_k``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
MAX_SUBSETS = 5_000  # more than that are sampled instead of enumerated
_EXACT_SIGNS = 16  # tasks up to which every sign flip is enumerated


@dataclass(frozen=True, slots=True)
class Vote:
    """One sample's final answer; None has no vote. Equal answers are right or wrong together."""

    answer: Hashable | None
    correct: bool


def majority_at_k(votes: Sequence[Vote], k: int, *, seed: int = 0) -> float:
    """Chance that the most frequent answer of k samples, drawn from these, is correct.

    Ties are broken by lot; k samples without any answer are wrong. maj@k or self-consistency
    (arXiv:2203.11171). Exact up to 5,000 subsets of size k, else over 5,000 drawn with ``seed``.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@k needs 1 <= k <= n, got k={k}, n={len(votes)}")
    if math.comb(len(votes), k) <= MAX_SUBSETS:
        chances = [_majority(subset) for subset in itertools.combinations(votes, k)]
    else:
        rng = np.random.default_rng(seed)
        drawn = (rng.permutation(len(votes))[:k] for _ in range(MAX_SUBSETS))
        chances = [_majority([votes[i] for i in subset]) for subset in drawn]
    return math.fsum(chances) / len(chances)


def _majority(votes: Sequence[Vote]) -> float:
    counted = Counter(vote.answer for vote in votes if vote.answer is not None)
    if not counted:
        return 0.0
    most = max(counted.values())
    winners = [answer for answer, n in counted.items() if n == most]
    right = {vote.answer for vote in votes if vote.correct}
    return sum(winner in right for winner in winners) / len(winners)


def bootstrap_interval(
    per_task: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over tasks, by resampling tasks (Efron 1979)."""
    values = np.asarray(per_task, dtype=np.float64)
    if not len(values):
        raise ValueError("an interval needs at least one task")
    means = _resampled_means(values, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedResult:
    """b - a over the tasks both were asked."""

    n_tasks: int
    difference: float
    low: float
    high: float
    p_value: float


def paired_test(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> PairedResult:
    """Whether b is better than a, task by task.

    The interval of the mean difference is by bootstrap over tasks. The p-value is that of a
    two-sided sign-flip permutation test of mean 0: exact up to 16 differing tasks, else with
    10,000 flips (and 1 added to both counts; Phipson & Smyth 2010). Raises ValueError for unequal
    lengths.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired test needs equally many tasks, got {len(a)} and {len(b)}")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    means = _resampled_means(differences, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(differences.mean())
    return PairedResult(len(a), mean, float(low), float(high), _sign_flip(differences, seed))


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    seen = abs(moved.sum()) - 1e-12
    if len(moved) <= _EXACT_SIGNS:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(moved))))
        return float((abs(signs @ moved) >= seen).mean())
    rng = np.random.default_rng(seed)
    signs = rng.choice((-1.0, 1.0), size=(RESAMPLES, len(moved)))
    extreme = int((abs(signs @ moved) >= seen).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(values))  # bounds memory
    parts = []
    for start in range(0, RESAMPLES, rows):
        n = min(rows, RESAMPLES - start)
        parts.append(values[rng.integers(0, len(values), size=(n, len(values)))].mean(axis=1))
    return np.concatenate(parts)
