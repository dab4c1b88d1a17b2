"""What one optimiser step says of itself: metric sums over rows and ranks, and its time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Totals:
    """Metric sums (and ``*_max`` maxima) over rows, then over ranks.

    ``copies``: how many ranks report each row, where they share it.
    """

    def __init__(self, device: torch.device, copies: int = 1) -> None:
        self._device = device
        self._copies = copies
        self._values: dict[str, Tensor] = {}

    def add(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            new = torch.as_tensor(value, dtype=torch.float64, device=self._device)
            old = self._values.get(name)
            if old is not None:
                new = torch.maximum(old, new) if name.endswith("_max") else old + new
            self._values[name] = new

    def reduce(self, denominator: float) -> dict[str, float]:
        """Sums become means: the loss over ``denominator``, the rest over the tokens seen.

        ``effective_sample_share`` is (sum w)^2 / (N sum w^2) of the correction's weights, or of
        the ratios where there is no correction: 1 where engine and learner agree.
        """
        maxima = {k: self._all(v, dist.ReduceOp.MAX) for k, v in self._values.items() if _is_max(k)}
        names = sorted(self._values.keys() - maxima.keys())
        stacked = torch.stack([self._values[name] for name in names])
        dist.all_reduce(stacked)
        stacked /= self._copies
        sums = dict(zip(names, stacked.tolist(), strict=True))
        counts = {name: sums.pop(name) for name in ("trained_tokens", "learner_tokens")}
        trained = max(counts["trained_tokens"], 1)
        loss = sums.pop("loss") / denominator
        means = {_NAMES.get(name, name): value / trained for name, value in sums.items()}
        return {"loss": loss, **_with_effective_share(means), **maxima, **counts}

    def _all(self, value: Tensor, op: Any) -> float:
        dist.all_reduce(value, op)
        return float(value)


_NAMES = {"ratio": "ratio_mean", "clipped": "clip_fraction"}


def _with_effective_share(means: dict[str, float]) -> dict[str, float]:
    """The mean squares of the weights are used up for it."""
    ratio_sq = means.pop("ratio_sq", 0.0)
    weight, square = means.get("ratio_mean", 0.0), ratio_sq
    if "correction_weight" in means:
        weight, square = means["correction_weight"], means.pop("correction_weight_sq")
    return means | {"effective_sample_share": weight**2 / square} if square else means


def _is_max(name: str) -> bool:
    return name.endswith("_max")


class Clock:
    """Where a step's time went; on a GPU it waits for the work to be done."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._laps = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0, "critic": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._laps[name] += now - self._last
        self._last = now

    def metrics(self, tokens: float) -> dict[str, float]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        laps = {f"learner_{name}_s": seconds for name, seconds in self._laps.items()}
        return laps | {
            "learner_tokens_per_s": tokens / max(sum(self._laps.values()), 1e-9),
            "learner_rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        }
