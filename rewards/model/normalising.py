"""Decides how scores are brought to mean 0 and standard deviation 1.

    value = (raw - mean) / std        over all raw scores up to the last ``update``

Statistics that move while a step's samples are being scored would give members of one group
different scales, and make a value depend on which sample came first. So scoring only collects;
``update()``, called between steps, folds what was collected into the statistics (Welford 1962), in
sorted order: the same set of scores gives the same bits, in whatever order they arrived. Until the
first update with two scores, and while all were equal, values are raw minus mean. ``frozen`` stops
collecting; a state holds everything, the collected scores included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rewards.errors import UsageError


class RunningStatistics:
    """Count, mean and variance of raw scores. Not to be updated while samples are being scored."""

    def __init__(self) -> None:
        self.count, self.mean, self.frozen = 0, 0.0, False
        self._m2 = 0.0  # sum of squared distances from the mean
        self._collected: list[float] = []

    @property
    def std(self) -> float:
        """Standard deviation of the population; 1 where there is no spread to divide by."""
        std = math.sqrt(self._m2 / self.count) if self.count > 1 else 0.0
        return std if std > 1e-8 else 1.0

    def collect(self, raw: float) -> None:
        """Remember a score for the next update."""
        if not self.frozen:
            self._collected.append(raw)

    def normalised(self, raw: float) -> float:
        return (raw - self.mean) / self.std

    def update(self) -> None:
        """Fold what was collected into the statistics."""
        collected, self._collected = sorted(self._collected), []
        for raw in collected:
            self.count += 1
            away = raw - self.mean
            self.mean += away / self.count
            self._m2 += away * (raw - self.mean)

    def freeze(self) -> None:
        """Keep the statistics as they are from here on; what was collected since is dropped."""
        self.frozen, self._collected = True, []

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; floats survive JSON exactly."""
        return {
            "count": self.count,
            "mean": self.mean,
            "m2": self._m2,
            "frozen": self.frozen,
            "collected": sorted(self._collected),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UsageError for something that is no state of these statistics."""
        try:
            count, mean, m2 = int(state["count"]), float(state["mean"]), float(state["m2"])
            frozen, collected = bool(state["frozen"]), [float(x) for x in state["collected"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"no state of running statistics: {state!r:.200}") from error
        if count < 0 or m2 < 0 or not all(map(math.isfinite, (mean, m2, *collected))):
            raise UsageError(f"a broken state of running statistics: {state!r:.200}")
        self.count, self.mean, self._m2 = count, mean, m2
        self.frozen, self._collected = frozen, collected
