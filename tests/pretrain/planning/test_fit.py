"""Planted parameters come back from synthetic runs; what cannot be fitted is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest

from pretrain.errors import UsageError
from pretrain.planning.fit import fit_law
from pretrain.planning.isoflop import by_budget, fit_isoflop
from pretrain.planning.law import LAWS, Law
from pretrain.planning.rates import deepseek_law, fit_rates, mup_rate, step_law
from pretrain.planning.runs import Run, tuned

SIZES, TOKENS = (1e8, 4e8, 2e9, 8e9), (2e9, 1e10, 5e10)
SKEWED = Law(E=0.8, A=60.0, B=3000.0, alpha=0.25, beta=0.5)


def grid(law: Law, noise: float = 0.0) -> list[Run]:
    rng = np.random.default_rng(3)
    return [
        Run(n, d, law.loss(n, d) * float(np.exp(rng.normal(0, noise))))
        for n in SIZES
        for d in TOKENS
    ]


@pytest.mark.parametrize("law", [*LAWS.values(), SKEWED])
def test_a_law_comes_back_exactly_from_runs_without_noise(law: Law) -> None:
    found = fit_law(grid(law), resamples=0)
    assert dataclasses.astuple(found.law) == pytest.approx(dataclasses.astuple(law), rel=1e-4)
    assert found.error < 1e-6


def test_a_law_is_within_the_intervals_of_runs_with_noise() -> None:
    law = LAWS["besiroglu"]
    found = fit_law(grid(law, noise=0.003), resamples=60)
    for name, (low, high) in found.intervals(level=0.95).items():
        assert low <= getattr(law, name) <= high, name
        assert low < high
    low, high = found.loss_interval(32e9, 5e10)
    assert low <= law.loss(32e9, 5e10) <= high
    assert high / low < 1.02


def test_one_wild_run_does_not_move_the_fit() -> None:
    """What the Huber loss is for: beyond delta a residual pulls with a constant force."""
    law = LAWS["besiroglu"]
    runs = grid(law)
    runs[5] = dataclasses.replace(runs[5], loss=runs[5].loss * 1.3)
    found = fit_law(runs, resamples=0).law
    assert found.loss(32e9, 2e11) == pytest.approx(law.loss(32e9, 2e11), rel=1e-3)


def test_too_few_runs_are_counted() -> None:
    runs = grid(LAWS["hoffmann"])
    with pytest.raises(UsageError, match=r"there are 3 runs, 1 sizes.*add 3 more runs, 2 more si"):
        fit_law(runs[:3])
    with pytest.raises(UsageError, match="add 2 more numbers of tokens"):
        fit_law([run for run in runs if run.tokens == 1e10] * 2)


def test_a_fixed_ratio_of_tokens_to_size_cannot_be_told_apart() -> None:
    law = LAWS["hoffmann"]
    runs = [Run(n, 20 * n, law.loss(n, 20 * n)) for n in np.geomspace(1e8, 1e10, 8)]
    with pytest.raises(UsageError, match="grow in step"):
        fit_law(runs)


# IsoFLOP


def parabolas(noise: float = 0.0, sizes: Iterable[float] = (-1, -0.5, 0, 0.5, 1)) -> list[Run]:
    """Budgets whose losses are parabolas in log N around 0.6 C^0.47."""
    rng = np.random.default_rng(0)
    runs = []
    for flops in (1e18, 1e19, 1e20):
        best = 0.6 * flops**0.47
        for offset in sizes:
            size = best * np.exp(offset)
            loss = 3 - 0.1 * np.log10(flops / 1e18) + 0.05 * offset**2
            runs.append(Run(size, flops / 6 / size, loss + rng.normal(0, noise)))
    return runs


def test_planted_minima_come_back() -> None:
    found = fit_isoflop(parabolas(), resamples=0)
    assert (found.scale, found.exponent) == pytest.approx((0.6, 0.47), rel=1e-6)
    assert found.parameters(1e22) == pytest.approx(0.6 * 1e22**0.47, rel=1e-6)
    assert found.tokens(1e22) * found.parameters(1e22) * 6 == pytest.approx(1e22)
    assert [m.loss for m in found.minima] == pytest.approx([3.0, 2.9, 2.8])


def test_planted_minima_are_within_the_interval_of_noisy_runs() -> None:
    found = fit_isoflop(parabolas(noise=0.002), resamples=200)
    low, high = found.parameters_interval(1e21, level=0.95)
    assert low < 0.6 * 1e21**0.47 < high
    assert high / low < 1.6


def test_parabolas_agree_with_a_symmetric_law() -> None:
    """With alpha = beta and sizes centred on the minimum the parabola is not biased."""
    law = Law(E=1.7, A=400, B=400, alpha=0.3, beta=0.3)
    runs = [
        Run(size, flops / 6 / size, law.loss(size, flops / 6 / size))
        for flops in (1e18, 1e20)
        for size in law.optimum(flops).parameters * np.geomspace(0.5, 2, 5)
    ]
    assert fit_isoflop(runs, resamples=0).parameters(1e22) == pytest.approx(
        law.optimum(1e22).parameters, rel=1e-6
    )


def test_budgets_within_five_percent_are_one() -> None:
    runs = [Run(1e6, 1e6, 3.0), Run(1e6, 1.04e6, 3.0), Run(1e6, 2e6, 3.0)]
    assert [len(group) for group in by_budget(runs)] == [2, 1]


def test_missing_budgets_and_minima_are_named() -> None:
    with pytest.raises(UsageError, match="2 budgets of 3 sizes each; of 1 budgets here 1 have"):
        fit_isoflop([run for run in parabolas() if run.flops < 2e18])
    with pytest.raises(UsageError, match=r"no minimum.*add larger models"):
        fit_isoflop(parabolas(sizes=(-2, -1.5, -1)))
    with pytest.raises(UsageError, match=r"no minimum.*add smaller models"):
        fit_isoflop(parabolas(sizes=(2, 1.5, 1)))


# learning rates


def swept(factors: Iterable[float] = (0.25, 0.5, 1.1, 2, 4)) -> list[Run]:
    """Losses that are parabolas in log rate around 2 N^-0.4."""
    return [
        Run(n, 1e6, 3 + 0.1 * np.log(factor) ** 2, 2 * n**-0.4 * factor)
        for n in (1e5, 3e5, 1e6)
        for factor in factors
    ]


def test_a_planted_law_of_rates_comes_back() -> None:
    law = fit_rates([*swept(), Run(1e6, 1e6, 2.0)])  # the last has no rate: left out
    assert (law.scale, law.exponent) == pytest.approx((2, 0.4))
    assert law.rate(4e6) == pytest.approx(2 * 4e6**-0.4)
    assert law.best[1e5] == pytest.approx(2 * 1e5**-0.4)


def test_a_best_rate_at_the_edge_asks_for_the_next() -> None:
    with pytest.raises(UsageError, match="is the lowest that was tried: try"):
        fit_rates(swept(factors=(1.1, 2, 4)))
    with pytest.raises(UsageError, match="is the highest that was tried: try"):
        fit_rates(swept(factors=(0.25, 0.5, 0.9)))


def test_missing_rates_are_counted() -> None:
    with pytest.raises(UsageError, match=r"2 sizes with 3 rates each.*by size: 100,000: 2, 300,0"):
        fit_rates(swept(factors=(0.5, 2)))


def test_of_several_sweeps_of_a_size_the_longest_counts() -> None:
    short = [
        dataclasses.replace(run, tokens=1e5, learning_rate=1e-3 * i)
        for i, run in enumerate(swept(), 1)
    ]
    assert fit_rates([*short, *swept()]) == fit_rates(swept())


def test_only_the_best_rate_of_a_size_and_length_counts_for_the_law() -> None:
    law = LAWS["besiroglu"]
    spoilt = [dataclasses.replace(run, loss=run.loss * 1.2) for run in grid(law)]
    assert tuned([*spoilt, *grid(law)]) == grid(law)


@pytest.mark.parametrize(
    ("parameters", "rate", "rows"), [(6.9e9, 4.2e-4, 2304), (67e9, 3.2e-4, 4608)]
)
def test_deepseeks_law_gives_deepseeks_models(parameters: float, rate: float, rows: int) -> None:
    """Bi et al. (2024), table 2: both on 2 T tokens, in rows of 4,096."""
    pace = deepseek_law(parameters, 2e12)
    assert pace.rate == pytest.approx(rate, rel=0.02)
    assert pace.batch_tokens == pytest.approx(rows * 4096, rel=0.04)


def test_step_law_by_hand() -> None:
    """10^9 parameters, 10^11 tokens: 1.79 x 10^(-6.417 + 3.377) and 0.58 x 10^6.281."""
    pace = step_law(1e9, 1e11)
    assert pace.rate == pytest.approx(1.79 * 10**-3.04, rel=1e-3)
    assert pace.batch_tokens == pytest.approx(0.58 * 10**6.281, rel=1e-3)


def test_mup_halves_the_rate_of_twice_the_width() -> None:
    assert mup_rate(4e-3, 128, 256) == pytest.approx(2e-3)
    with pytest.raises(UsageError, match="above 0"):
        mup_rate(4e-3, 0, 256)
