"""Decides the best size for a budget from runs that share budgets, without a law for the loss.

Hoffmann et al. (2022, approach 2): for each budget a parabola through (log N, loss), whose minimum
is the best size N*; a power law N* = k C^a through the minima. The best number of tokens follows
from C = 6 N D.

The parabola is an approximation: where sizes are spread over more than about a factor of 4 around
the minimum, or lie to one side of it, and alpha and beta differ, the minimum is biased
(arXiv 2603.22339). The parametric fit (``fit``) is not, and uses runs without a common budget too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.errors import UsageError
from pretrain.planning.runs import Run

_SAME_BUDGET = 1.05  # ratio within which budgets count as one
_FEWEST_SIZES, _FEWEST_BUDGETS = 3, 2


@dataclass(frozen=True, slots=True)
class Minimum:
    """Of one budget's parabola."""

    flops: float
    parameters: float
    loss: float
    runs: int


@dataclass(frozen=True, slots=True)
class IsoFlop:
    """N*(C) = scale C^exponent, the minima it was drawn through, and resampled pairs of these."""

    scale: float
    exponent: float
    minima: tuple[Minimum, ...]
    resampled: tuple[tuple[float, float], ...]

    def parameters(self, flops: float) -> float:
        """The best size for a budget."""
        return float(self.scale * flops**self.exponent)

    def tokens(self, flops: float) -> float:
        """The best number of tokens for a budget."""
        return flops / 6 / self.parameters(flops)

    def parameters_interval(self, flops: float, level: float = 0.9) -> tuple[float, float]:
        """Percentiles over resampled runs."""
        sizes = [scale * flops**exponent for scale, exponent in self.resampled]
        if not sizes:
            raise UsageError("there are no intervals without resamples")
        low, high = np.quantile(sizes, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def fit_isoflop(runs: Sequence[Run], *, resamples: int = 200, seed: int = 0) -> IsoFlop:
    """The power law of the minima. Raises UsageError that says which runs are missing.

    Intervals resample the runs of each budget; draws without a minimum inside are left out, so
    that few resamples are left where a budget has few runs.
    """
    groups = by_budget(runs)
    enough = [g for g in groups if len({run.parameters for run in g}) >= _FEWEST_SIZES]
    if len(enough) < _FEWEST_BUDGETS:
        raise UsageError(
            f"IsoFLOP fits need {_FEWEST_BUDGETS} budgets of {_FEWEST_SIZES} sizes each; of "
            f"{len(groups)} budgets here {len(enough)} have as many"
        )
    minima = tuple(_minimum(group) for group in enough)
    scale, exponent = _power_law(minima)
    rng = np.random.default_rng(seed)
    drawn = (_resampled(enough, rng) for _ in range(resamples))
    return IsoFlop(scale, exponent, minima, tuple(law for law in drawn if law is not None))


def by_budget(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by 6 N D, the smallest budget first; within 5 % budgets are the same."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.flops):
        if groups and run.flops <= groups[-1][0].flops * _SAME_BUDGET:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _flops(group: Sequence[Run]) -> float:
    return float(np.exp(np.mean([math.log(run.flops) for run in group])))


def _minimum(group: Sequence[Run]) -> Minimum:
    """Raises UsageError when the least loss is not between the sizes tried."""
    sizes = np.log([run.parameters for run in group])
    centre = sizes.mean()
    square, linear, constant = np.polyfit(sizes - centre, [run.loss for run in group], 2)
    at = centre - linear / (2 * square) if square > 0 else math.inf
    if not sizes.min() <= at <= sizes.max():
        losses = {run.parameters: run.loss for run in group}
        best = min(losses, key=lambda size: losses[size])
        way = "larger" if best > np.exp(centre) else "smaller"
        raise UsageError(
            f"at {_flops(group):.3g} FLOP the loss has no minimum between the sizes tried "
            f"({np.exp(sizes.min()):.3g} to {np.exp(sizes.max()):.3g}): add {way} models"
        )
    loss = float(constant - linear**2 / (4 * square))
    return Minimum(_flops(group), float(np.exp(at)), loss, len(group))


def _power_law(minima: Sequence[Minimum]) -> tuple[float, float]:
    flops = np.log([minimum.flops for minimum in minima])
    sizes = np.log([minimum.parameters for minimum in minima])
    exponent, intercept = np.polyfit(flops, sizes, 1)
    return float(np.exp(intercept)), float(exponent)


def _resampled(
    groups: Sequence[Sequence[Run]], rng: np.random.Generator
) -> tuple[float, float] | None:
    minima = []
    for group in groups:
        again = [group[i] for i in rng.integers(0, len(group), len(group))]
        if len({run.parameters for run in again}) < _FEWEST_SIZES:
            return None
        try:
            minima.append(_minimum(again))
        except UsageError:
            return None
    return _power_law(minima)
