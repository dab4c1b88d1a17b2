"""Decides which losses are spikes: batches whose update must not be applied.

A loss x is compared with the last ``window`` losses that were accepted: robust z-score
(x - median) / (1.4826 MAD), the median absolute deviation scaled to a Gaussian's standard deviation
(Iglewicz and Hoaglin 1993). A fall is never a spike, nothing is judged before a quarter of the
window is there, and a deviation below half a percent of the median counts as that.

A spike's update is skipped. ``repeats`` of them in a row mean that the weights, not the data, are
wrong: the run goes back to a checkpoint before the first of them, at a lower rate, and passes those
steps over (PaLM, arXiv:2204.02311, section 5.1, skips batches around a spike). It does so three
times; at the fourth the run stops. A loss or gradient norm that is not finite counts as a spike.

Everything here is a function of the losses, which a checkpoint holds; so a resumed run decides as
the uninterrupted one.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pretrain.training.settings import SpikeSettings

MOST_ROLLBACKS = 3


@dataclass(slots=True)
class SpikeGuard:
    """The losses so far, and the spikes in a row."""

    settings: SpikeSettings
    accepted: deque[float] = field(init=False)
    in_a_row: list[int] = field(default_factory=list)  # steps
    skipped: int = 0  # updates in all
    not_finite: int = 0  # of them

    def __post_init__(self) -> None:
        self.accepted = deque(maxlen=self.settings.window)

    def fault(self, loss: float) -> str:
        """Why this loss is a spike, or ""."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if len(self.accepted) < self.settings.window // 4:
            return ""
        score = z_score(loss, self.accepted)
        if score <= self.settings.threshold:
            return ""
        middle = statistics.median(self.accepted)
        return f"the loss is {loss:.3f}, {score:.0f} deviations above {middle:.3f}"

    def note(self, step: int, loss: float, *, applied: bool) -> bool:
        """Remember a step; whether the run must go back."""
        if applied:
            self.accepted.append(loss)
            self.in_a_row = []
            return False
        self.skipped += 1
        self.in_a_row.append(step)
        return len(self.in_a_row) >= self.settings.repeats

    def forget(self) -> None:
        """Another mix or length: its losses can't be compared with those before."""
        self.accepted.clear()

    def state(self) -> dict[str, Any]:
        return {
            "accepted": list(self.accepted),
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "not_finite": self.not_finite,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.accepted = deque(state["accepted"], maxlen=self.settings.window)
        self.in_a_row = list(state["in_a_row"])
        self.skipped, self.not_finite = state["skipped"], state["not_finite"]


def z_score(loss: float, others: deque[float] | list[float]) -> float:
    """How many robust standard deviations ``loss`` lies above the median of the others."""
    middle = statistics.median(others)
    spread = 1.4826 * statistics.median(abs(other - middle) for other in others)
    return (loss - middle) / max(spread, 0.005 * abs(middle), 1e-12)
