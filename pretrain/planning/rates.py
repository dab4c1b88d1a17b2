"""Decides how a learning rate found on small models becomes one for a large model.

Two ways. From runs: for each size the minimum of a parabola through (log rate, loss), and a power
law rate = c N^-p through these minima, as Kaplan et al. (2020) and Bi et al. (2024, DeepSeek LLM)
fit theirs. By rule: under muP (Yang et al. 2022, table 3) Adam's rate of a hidden matrix goes with
1 / width, while embeddings, gains and biases keep theirs. A model with muP's initialisation needs
both parts; one with the standard initialisation is only near it.

Left out: the dependence on tokens and batch size. Rates are only carried between runs that share
their batch and have about as many steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.errors import UsageError
from pretrain.planning.runs import Run

_FEWEST_RATES = 3  # that determine a parabola
_FEWEST_SIZES = 2  # that determine a power law


@dataclass(frozen=True, slots=True)
class RateLaw:
    """rate(N) = scale N^-exponent, and the best rate of each size that it was drawn through."""

    scale: float
    exponent: float
    best: dict[float, float]  # parameters -> rate at the parabola's minimum

    def rate(self, parameters: float) -> float:
        """The rate for a model of this size."""
        return float(self.scale * parameters**-self.exponent)


def fit_rates(runs: Sequence[Run]) -> RateLaw:
    """The law through the best rate of each size; runs without a rate are left out.

    Where a size was swept at several numbers of tokens the most count. Raises UsageError that says
    what is missing.
    """
    sweeps: dict[tuple[float, float], list[Run]] = defaultdict(list)
    for run in runs:
        if run.learning_rate is not None:
            sweeps[run.parameters, run.tokens].append(run)
    enough: dict[float, list[Run]] = {}
    tried: dict[float, int] = defaultdict(int)
    for (size, _), sweep in sorted(sweeps.items()):
        rates = len({run.learning_rate for run in sweep})
        tried[size] = max(tried[size], rates)
        if rates >= _FEWEST_RATES:
            enough[size] = sweep
    if len(enough) < _FEWEST_SIZES:
        seen = ", ".join(f"{size:,.0f}: {n}" for size, n in tried.items()) or "none"
        raise UsageError(
            f"a law for the learning rate needs {_FEWEST_SIZES} sizes with {_FEWEST_RATES} rates "
            f"each, on equal tokens; rates tried by size: {seen}"
        )
    best = {size: _best_rate(size, sweep) for size, sweep in enough.items()}
    slope, intercept = np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)
    return RateLaw(float(np.exp(intercept)), float(-slope), best)


def _best_rate(size: float, runs: Sequence[Run]) -> float:
    """The minimum of the parabola through the best rate tried and its neighbours on either side."""
    losses = {float(run.learning_rate or 0.0): run.loss for run in runs}
    rates = sorted(losses)
    at = min(range(len(rates)), key=lambda i: losses[rates[i]])
    if at in (0, len(rates) - 1):
        raise UsageError(
            f"the best rate of {size:,.0f} parameters, {rates[at]:g}, is the "
            f"{'lowest' if at == 0 else 'highest'} that was tried: try "
            f"{rates[at] / 2 if at == 0 else rates[at] * 2:g}"
        )
    near = rates[at - 1 : at + 2]
    square, linear, _ = np.polyfit(np.log(near), [losses[rate] for rate in near], 2)
    return float(np.exp(-linear / (2 * square)))


def mup_rate(rate: float, width: float, new_width: float) -> float:
    """Adam's rate of the hidden matrices at another width: rate * width / new_width."""
    if min(rate, width, new_width) <= 0:
        raise UsageError("a learning rate and both widths must be above 0")
    return rate * width / new_width
