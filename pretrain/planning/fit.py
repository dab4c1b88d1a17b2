"""Decides how the law L(N, D) is fitted to runs, and how far to trust it.

Hoffmann et al. (2022, appendix D.3): the least sum of Huber losses, delta = 1e-3, of
log L(N, D) - log loss, by L-BFGS from a grid of starts. Two changes, both for convergence, whose
lack spoilt the published fit (Besiroglu et al. 2024): residuals are divided by delta, so that the
objective is of order one, and the grid is over the two exponents alone, as E, A and B enter
linearly and follow from each pair by non-negative least squares. Sizes and tokens are divided by
their geometric means, which makes the five numbers nearly independent.

Intervals are percentiles over resampled runs (pairs bootstrap). They tell the scatter of the runs,
not whether the law holds where no run was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import UsageError
from pretrain.planning.law import Law
from pretrain.planning.runs import Run

Floats = NDArray[np.float64]

DELTA = 1e-3
_FEWEST_RUNS, _FEWEST_SIZES, _FEWEST_TOKENS = 6, 3, 3
_EXPONENTS = np.linspace(0.05, 1.2, 12)
_STARTS = 8  # of the grid's 144 pairs, the best
_ALIKE = 0.999  # correlation of log N and log D above which neither exponent can be told


@dataclass(frozen=True, slots=True)
class Fit:
    """A law, and the laws of resampled runs that its intervals are read from."""

    law: Law
    resampled: tuple[Law, ...]
    error: float  # root mean square of log L - log loss over the runs

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Of one of the law's five numbers."""
        return _interval([getattr(law, name) for law in self.resampled], level)

    def loss_interval(
        self, parameters: float, tokens: float, level: float = 0.9
    ) -> tuple[float, float]:
        """Of the predicted loss of a run."""
        return _interval([law.loss(parameters, tokens) for law in self.resampled], level)

    def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Of all five."""
        return {field.name: self.interval(field.name, level) for field in fields(Law)}


def fit_law(runs: Sequence[Run], *, resamples: int = 200, seed: int = 0) -> Fit:
    """The law of these runs. Raises UsageError that says which runs are missing."""
    _enough(runs)
    data = _Data.of(runs)
    parameters = min(
        (_descend(data, start) for start in _starts(data)), key=lambda p: _objective(p, data)[0]
    )
    rng = np.random.default_rng(seed)
    resampled = tuple(
        data.law(_descend(again, parameters, tolerance=1e-9))
        for again in _resamples(data, resamples, rng)
    )
    error = float(np.sqrt(np.mean(_residuals(parameters, data)[0] ** 2)))
    return Fit(data.law(parameters), resampled, error)


@dataclass(frozen=True, slots=True)
class _Data:
    """The runs as logarithms; sizes and tokens relative to centres that stay in a resample."""

    size: Floats  # [runs] log(N / N0)
    tokens: Floats  # [runs] log(D / D0)
    loss: Floats  # [runs] log loss
    centre: tuple[float, float]  # log N0, log D0

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Data:
        size = np.log([run.parameters for run in runs])
        tokens = np.log([run.tokens for run in runs])
        centre = (float(size.mean()), float(tokens.mean()))
        loss = np.log([run.loss for run in runs])
        return cls(size - centre[0], tokens - centre[1], loss, centre)

    def take(self, rows: NDArray[np.int64]) -> _Data:
        return _Data(self.size[rows], self.tokens[rows], self.loss[rows], self.centre)

    def law(self, parameters: Floats) -> Law:
        """From (log of each term at the centre, alpha, beta) to the law."""
        e, a, b, alpha, beta = map(float, parameters)
        return Law(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * self.centre[0])),
            B=float(np.exp(b + beta * self.centre[1])),
            alpha=alpha,
            beta=beta,
        )


def _residuals(parameters: Floats, data: _Data) -> tuple[Floats, Floats]:
    """log L - log loss [runs], and the share of each term in L [runs, 3]."""
    e, a, b, alpha, beta = parameters
    terms = np.stack(
        [np.full_like(data.size, e), a - alpha * data.size, b - beta * data.tokens], axis=1
    )
    top = terms.max(axis=1, keepdims=True)
    powers = np.exp(terms - top)
    total = powers.sum(axis=1, keepdims=True)
    return (np.log(total) + top)[:, 0] - data.loss, powers / total


def _objective(parameters: Floats, data: _Data) -> tuple[float, Floats]:
    """Sum of Huber losses in units of delta squared, and its gradient."""
    residual, share = _residuals(parameters, data)
    scaled = residual / DELTA
    size = np.abs(scaled)
    value = np.where(size <= 1, 0.5 * scaled**2, size - 0.5).sum()
    slope = np.clip(scaled, -1, 1) / DELTA
    of_terms = slope[:, None] * share
    gradient = [
        *of_terms.sum(axis=0),
        -(of_terms[:, 1] * data.size).sum(),
        -(of_terms[:, 2] * data.tokens).sum(),
    ]
    return float(value), np.array(gradient)


def _descend(data: _Data, start: Floats, tolerance: float = 1e-15) -> Floats:
    from scipy.optimize import minimize

    # A term of no weight would drift without end.
    bounds = [(-20.0, 10.0)] * 3 + [(0.0, 3.0)] * 2
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": tolerance, "gtol": 1e-9, "maxcor": 30}
    found = minimize(
        _objective, start, (data,), "L-BFGS-B", jac=True, bounds=bounds, options=options
    )
    return np.asarray(found.x, np.float64)


def _starts(data: _Data) -> list[Floats]:
    """The best of a grid of exponents, each with its E, A and B by non-negative least squares."""
    from scipy.optimize import nnls

    found = []
    loss = np.exp(data.loss)
    for alpha in _EXPONENTS:
        for beta in _EXPONENTS:
            columns = [np.ones_like(loss), np.exp(-alpha * data.size), np.exp(-beta * data.tokens)]
            weights, misfit = nnls(np.stack(columns, axis=1), loss)
            logs = np.log(np.maximum(weights, 1e-6))
            found.append((misfit, np.array([*logs, alpha, beta])))
    return [start for _, start in sorted(found, key=lambda pair: pair[0])[:_STARTS]]


def _resamples(data: _Data, count: int, rng: np.random.Generator) -> list[_Data]:
    """Runs drawn with replacement; draws from which no law could be fitted are drawn again."""
    drawn: list[_Data] = []
    while len(drawn) < count:
        again = data.take(rng.integers(0, len(data.loss), len(data.loss)))
        if len(set(again.size)) >= _FEWEST_SIZES and len(set(again.tokens)) >= _FEWEST_TOKENS:
            drawn.append(again)
    return drawn


def _interval(values: Sequence[float], level: float) -> tuple[float, float]:
    if not values:
        raise UsageError("there are no intervals without resamples")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _enough(runs: Sequence[Run]) -> None:
    sizes, tokens = {run.parameters for run in runs}, {run.tokens for run in runs}
    have = {"runs": len(runs), "sizes": len(sizes), "numbers of tokens": len(tokens)}
    need = {"runs": _FEWEST_RUNS, "sizes": _FEWEST_SIZES, "numbers of tokens": _FEWEST_TOKENS}
    missing = [f"{need[k] - have[k]} more {k}" for k in need if have[k] < need[k]]
    if missing:
        wanted = ", ".join(f"{n} {what}" for what, n in need.items())
        given = ", ".join(f"{n} {what}" for what, n in have.items())
        raise UsageError(
            f"a fit needs at least {wanted}; there are {given}: add {', '.join(missing)}"
        )
    logs = np.log([[run.parameters, run.tokens] for run in runs])
    if np.corrcoef(logs.T)[0, 1] > _ALIKE:
        raise UsageError(
            "tokens grow in step with the size in these runs, so that the effect of one cannot be "
            "told from the other's: add runs of one size on different numbers of tokens"
        )
