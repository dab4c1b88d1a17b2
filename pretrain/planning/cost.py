"""Decides what training costs: days, GPU hours, money, energy and CO2 from FLOP and a speed.

    GPU hours = FLOP / (FLOP/s that one GPU achieves) / 3600
    days      = GPU hours / GPUs / goodput / 24
    kWh       = GPU hours / goodput x watts x PUE / 1000
    kg CO2e   = kWh x kg per kWh of the grid         (Touvron et al. 2023, LLaMA, section 6)

The achieved speed is measured, or stated as MFU: model FLOP, recomputation not counted, over the
peak (Chowdhery et al. 2022). Goodput is the share of time that trains, without restarts and waits:
above 0.9 for Llama 3 (Grattafiori et al. 2024, section 3.3.4). GPUs that wait are paid and draw
power, which is why goodput raises all of the four.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.errors import UsageError
from pretrain.planning.law import positive

GRID = 0.385  # kg CO2e per kWh, the average of the United States that LLaMA's paper uses
PUE = 1.1  # as there


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak FLOP/s in bfloat16 without sparsity, and its power limit, from the maker's sheets."""

    peak: float
    watts: float


GPUS = {
    "a100": Gpu(312e12, 400),
    "h100": Gpu(989e12, 700),
    "h200": Gpu(989e12, 700),
    "b200": Gpu(2250e12, 1000),
}


@dataclass(frozen=True, slots=True)
class Site:
    """What a GPU hour means in money and power."""

    price: float = 0.0  # of a GPU hour
    watts: float = 700.0
    pue: float = PUE
    grid: float = GRID
    goodput: float = 1.0

    def __post_init__(self) -> None:
        if self.price < 0 or self.grid < 0:
            raise UsageError("a price and the grid's CO2 must not be negative")
        positive(watts=self.watts)
        if self.pue < 1:
            raise UsageError(f"PUE is {self.pue:g}: it is 1 or more")
        if not 0 < self.goodput <= 1:
            raise UsageError(f"goodput is {self.goodput:g}: it is above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training run."""

    gpu_hours: float
    days: float
    money: float
    kwh: float
    co2_kg: float


def cost(flops: float, *, gpus: int, achieved: float, site: Site) -> Cost:
    """``achieved`` in FLOP/s of one GPU while it trains."""
    positive(flops=flops, GPUs=gpus, achieved_FLOP_per_s=achieved)
    gpu_hours = flops / achieved / 3600 / site.goodput
    kwh = gpu_hours * site.watts * site.pue / 1000
    return Cost(
        gpu_hours=gpu_hours,
        days=gpu_hours / gpus / 24,
        money=gpu_hours * site.price,
        kwh=kwh,
        co2_kg=kwh * site.grid,
    )


def flops_for(gpu_hours: float, *, achieved: float, site: Site) -> float:
    """The budget that so many paid GPU hours are: the inverse of ``cost``."""
    positive(GPU_hours=gpu_hours, achieved_FLOP_per_s=achieved)
    return gpu_hours * 3600 * achieved * site.goodput


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Model FLOP utilisation of one GPU from its measured tokens per second."""
    positive(tokens_per_second=tokens_per_second, flops_per_token=flops_per_token, peak=peak)
    return tokens_per_second * flops_per_token / peak
