"""Decides the learning rate of a step: pure functions of the step, and a rule for the peak by size.

A schedule is a share of the peak rate, a function of (step, total) alone: a resumed run needs
nothing but its step number, and a longer run, or a branch, is the same function with other numbers.

- warm-up: linear, (step + 1) / (warmup + 1), so that no step has a rate of 0
- cosine: a half period from 1 down to ``floor`` (SGDR, arXiv:1608.03983, without restarts). Its
  shape depends on the total, so a run can't be made longer on the way
- wsd: warm-up, stable, decay (MiniCPM, arXiv:2404.06395), the decay as 1 - sqrt (arXiv:2405.18392).
  Any point of the stable phase is the start of a longer run, or of a branch that anneals

The rule for the peak is Step Law (arXiv:2503.04715): 1.79 N^-0.713 D^0.307 for N parameters
without embeddings and D tokens. Fitted there from 60 M to 1 B parameters; below that it is
extrapolated.
"""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["wsd", "cosine", "constant"]


def warmed(step: int, warmup: int) -> float:
    """Share of the peak in a step of the warm-up, counted from 0; 1 afterwards."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0


def cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """1 after the warm-up, ``floor`` at ``total``."""
    if step < warmup:
        return warmed(step, warmup)
    left = max(1, total - warmup)
    swing = (1.0 - floor) / 2
    return floor + swing * (1.0 + math.cos(math.pi * (step - warmup) / left))


def wsd(step: int, *, warmup: int, total: int, decay: int, floor: float) -> float:
    """1 until ``total - decay``, then ``floor + (1 - floor) (1 - sqrt(share of the decay))``."""
    begin = total - decay
    if step < begin or not decay:
        return warmed(step, warmup)
    share = min(1.0, (step - begin) / decay)
    return floor + (1.0 - floor) * (1.0 - math.sqrt(share))


def rate_for_size(parameters: int, tokens: int) -> float:
    """Peak rate by Step Law. ``parameters`` without embeddings, ``tokens`` of the whole run."""
    return float(1.79 * parameters**-0.713 * tokens**0.307)
