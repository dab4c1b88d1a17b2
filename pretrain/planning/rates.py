"""Decides how a learning rate found on small models becomes one for a large model.

Three ways. From runs: for each size the minimum of a parabola through (log rate, loss), and a power
law rate = c N^-p through these minima. By a published law (``PUBLISHED``), where there are no runs.
By rule: under muP (Yang et al. 2022, table 3) Adam's rate of a hidden matrix goes with 1 / width,
while embeddings, gains and biases keep theirs. A model with muP's initialisation needs both parts;
one with the standard initialisation is only near it.

Left out of the first: the dependence on tokens and batch size. Rates are only carried between runs
that share their batch and have about as many steps.
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


@dataclass(frozen=True, slots=True)
class Pace:
    """A peak rate and the batch that it goes with, in tokens."""

    rate: float
    batch_tokens: float


def step_law(parameters: float, tokens: float) -> Pace:
    """1.79 N^-0.713 D^0.307 and 0.58 D^0.571 (Li et al. 2025, arXiv:2503.04715), N without the
    embeddings; fitted there on 60 M to 1 B parameters."""
    return Pace(1.79 * parameters**-0.713 * tokens**0.307, 0.58 * tokens**0.571)


def deepseek_law(parameters: float, tokens: float) -> Pace:
    """0.3118 C^-0.1250 and 0.2920 C^0.3271 with C = 6 N D (Bi et al. 2024, arXiv:2401.02954,
    equation 1), which counts C without the embeddings too; fitted on 1e17 to 2e19 FLOP."""
    flops = 6 * parameters * tokens
    return Pace(0.3118 * flops**-0.1250, 0.2920 * flops**0.3271)


PUBLISHED = {"Step Law": step_law, "DeepSeek LLM": deepseek_law}


def mup_rate(rate: float, width: float, new_width: float) -> float:
    """Adam's rate of the hidden matrices at another width: rate * width / new_width."""
    if min(rate, width, new_width) <= 0:
        raise UsageError("a learning rate and both widths must be above 0")
    return rate * width / new_width
