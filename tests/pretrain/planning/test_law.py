"""The laws of loss against the numbers their papers print."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import UsageError
from pretrain.planning.law import LAWS, Law

HOFFMANN, BESIROGLU = LAWS["hoffmann"], LAWS["besiroglu"]
# Sardana et al. (2023) use the exponents of Hoffmann's source, rounded otherwise.
SARDANA = Law(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)

laws = st.builds(
    Law,
    E=st.floats(0.1, 3.0),
    A=st.floats(10, 1e4),
    B=st.floats(10, 1e4),
    alpha=st.floats(0.2, 0.8),
    beta=st.floats(0.2, 0.8),
)
budgets = st.floats(15, 26).map(lambda power: 10.0**power)


def test_the_loss_of_chinchilla_by_both_fits() -> None:
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.937, abs=5e-4)
    assert BESIROGLU.loss(70e9, 1.4e12) == pytest.approx(1.974, abs=5e-4)


def test_the_second_fit_agrees_with_twenty_tokens_per_parameter_and_the_first_does_not() -> None:
    """Besiroglu et al. (2024), figure 5: at Chinchilla's budget, 5.76e23 FLOP."""
    second, first = BESIROGLU.optimum(5.76e23), HOFFMANN.optimum(5.76e23)
    assert second.parameters == pytest.approx(72.2e9, rel=1e-3)
    assert second.tokens / second.parameters == pytest.approx(18.4, abs=0.1)
    assert first.tokens / first.parameters == pytest.approx(92.6, abs=0.1)


def test_a_13b_model_for_2t_tokens_of_inference_is_better_made_as_7b() -> None:
    """Sardana et al. (2023), figure 1: 1.7e22 FLOP saved, 17 %."""
    wanted = SARDANA.optimum_for_size(13e9)
    cheapest = SARDANA.lifetime(wanted.loss, 2e12)
    before = wanted.flops + 2 * 13e9 * 2e12
    saved = before - cheapest.flops - 2 * cheapest.parameters * 2e12
    assert cheapest.parameters == pytest.approx(7e9, rel=0.01)
    assert saved == pytest.approx(1.7e22, rel=0.01)
    assert saved / before == pytest.approx(0.17, abs=0.005)
    assert SARDANA.loss(cheapest.parameters, cheapest.tokens) == pytest.approx(wanted.loss)


@given(laws, budgets, st.floats(0.5, 2.0))
def test_no_other_size_is_better_for_the_budget(law: Law, flops: float, factor: float) -> None:
    best = law.optimum(flops)
    assert best.flops == pytest.approx(flops)
    other = best.parameters * factor
    assert law.loss(other, flops / 6 / other) >= best.loss - 1e-12


@given(laws, budgets, st.floats(0.0, 3.0), st.floats(0.8, 1.25))
def test_no_other_size_is_cheaper_over_its_life(
    law: Law, flops: float, demand: float, factor: float
) -> None:
    best = law.optimum(flops)
    tokens = demand * best.tokens
    cheapest = law.lifetime(best.loss, tokens)

    def total(parameters: float) -> float:
        return parameters * (6 * law.tokens_for(best.loss, parameters) + 2 * tokens)

    least = total(cheapest.parameters)
    assert least <= total(cheapest.parameters * factor) * (1 + 1e-9)
    assert least <= total(best.parameters) * (1 + 1e-9)
    if demand == 0:  # nothing to gain: the optimum of the training
        assert cheapest.parameters == pytest.approx(best.parameters, rel=1e-3)


def test_the_best_training_of_a_size_is_the_optimum_of_its_budget() -> None:
    point = BESIROGLU.optimum_for_size(1e9)
    assert BESIROGLU.optimum(point.flops).parameters == pytest.approx(1e9)


def test_a_size_that_cannot_reach_the_loss_needs_endless_tokens() -> None:
    assert HOFFMANN.tokens_for(1.75, 1e9) == math.inf


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_must_be_a_positive_number(flops: float) -> None:
    with pytest.raises(UsageError, match="flops must be finite and above 0"):
        HOFFMANN.optimum(flops)


def test_a_loss_below_the_floor_is_named() -> None:
    with pytest.raises(UsageError, match="floor is 1.69"):
        HOFFMANN.lifetime(1.5, 1e9)
