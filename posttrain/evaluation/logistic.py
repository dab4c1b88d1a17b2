"""Logistic regression by Newton's method, which ratings and length-controlled win rates both are.

The likelihood is concave, so what is found is its one maximum. Outcomes may be halves: a tie is
half a win and half a loss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 200
_CLOSE = 1e-13  # gain of log-likelihood, of its own size, that is no gain


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def fit(
    design: Array, taken: Array, weight: Array, precision: float = 0.0, start: Array | None = None
) -> Array:
    """Coefficients [K] that maximise the weighted log-likelihood

        sum_n w_n (y_n log p_n + (1 - y_n) log(1 - p_n)) - precision / 2 |beta|^2,
        p = sigmoid(X beta),

    of ``taken`` y [N] in [0, 1] under ``design`` X [N, K]. Where a direction changes nothing, the
    solution without any part in it is taken (the shortest). ``start`` saves steps. Newton's steps
    are halved while they lose; the caller sees to it that there is a maximum.
    """

    def value_at(beta: Array) -> float:
        z = design @ beta
        likelihood = weight @ (taken * z - np.logaddexp(0.0, z))
        return float(likelihood - 0.5 * precision * beta @ beta)

    beta = np.zeros(design.shape[1]) if start is None else start
    value = value_at(beta)
    for _ in range(_STEPS):
        p = sigmoid(design @ beta)
        gradient = design.T @ (weight * (taken - p)) - precision * beta
        curvature = (design.T * (weight * p * (1 - p))) @ design
        curvature += precision * np.eye(len(beta))
        step = np.asarray(np.linalg.lstsq(curvature, gradient, rcond=None)[0], np.float64)
        gain = float(gradient @ step)  # twice what the step promises
        if gain <= _CLOSE * max(1.0, abs(value)):
            return beta + step
        beta, value = _climb(beta, step, value, value_at)
    return beta


def _climb(
    beta: Array, step: Array, value: float, value_at: Callable[[Array], float]
) -> tuple[Array, float]:
    for halvings in range(60):
        tried = beta + step * 0.5**halvings
        found = value_at(tried)
        if found >= value:
            return tried, found
    return beta, value
