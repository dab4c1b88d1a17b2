"""Win rates of one model over another from verdicts on their answers, also at equal length.

Judges and people like long answers. The length-controlled win rate is that of AlpacaEval 2.0
(Dubois et al., arXiv:2404.04475): the chance that a takes question x is modelled as

    p_x = sigmoid(theta + phi tanh((l_a,x - l_b,x) / s))

with l the lengths in characters and s the standard deviation of their differences, and the win rate
is what the model says where the lengths are equal: sigmoid(theta). The paper's third term, the
difficulty of x, is left out: it is estimated from the verdicts on many models, and is not
identified by those on two. Ties are half. A prior of precision 1e-6 on both coefficients keeps
them finite where one model took everything; it moves nothing else that is shown.

Exchanging a and b gives exactly the complement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.evaluation.logistic import Array, fit, sigmoid
from posttrain.evaluation.statistics import bootstrap_interval

PRECISION = 1e-6
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class WinRate:
    """Of a over b, with 95 % intervals over questions."""

    n: int
    win_rate: float
    interval: tuple[float, float]
    length_controlled: float
    length_controlled_interval: tuple[float, float]
    length_effect: float  # phi: log-odds that a much longer answer gains
    length_ratio: float  # mean length of a's answers over that of b's


def win_rate(
    taken: Sequence[float], lengths: Sequence[tuple[int, int]], *, seed: int = 0
) -> WinRate:
    """``taken`` [n] is what a took of each question (1, 1/2, 0), ``lengths`` [n] a's and b's.

    The interval of the length-controlled rate is over a Bayesian bootstrap (Rubin 1981).
    Raises ValueError for no question, or unequally many.
    """
    if not len(taken) or len(taken) != len(lengths):
        raise ValueError(f"{len(taken)} verdicts and {len(lengths)} pairs of lengths")
    y, sizes = np.asarray(taken, np.float64), np.asarray(lengths, np.float64)
    design = _design(sizes[:, 0] - sizes[:, 1])
    best = fit(design, y, np.ones(len(y)), PRECISION)
    rng = np.random.default_rng(seed)
    weights = (rng.exponential(size=len(y)) for _ in range(DRAWS))
    drawn = np.array([fit(design, y, weight, PRECISION, best)[0] for weight in weights])
    low, high = sigmoid(np.quantile(drawn, [0.025, 0.975]))
    return WinRate(
        n=len(y),
        win_rate=float(y.mean()),
        interval=bootstrap_interval(y.tolist(), seed=seed),
        length_controlled=float(sigmoid(best)[0]),
        length_controlled_interval=(float(low), float(high)),
        length_effect=float(best[1]),
        length_ratio=float(sizes[:, 0].sum() / max(1.0, sizes[:, 1].sum())),
    )


def _design(longer: Array) -> Array:
    """[n, 2]: one, and the squashed difference of lengths."""
    spread = float(longer.std())
    if spread == 0.0:  # one constant difference cannot be told from theta
        return np.column_stack([np.ones(len(longer)), np.zeros(len(longer))])
    return np.column_stack([np.ones(len(longer)), np.tanh(longer / spread)])
