"""Mixtures: loss and alarm by hand. Training them: tests/pretrain/training/test_mixture_runs.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.models import collapsed, expert_load, load_balancing_loss, load_line


def outputs(*layers: list[list[float]]) -> Any:
    """Router probabilities [layers][tokens][experts], as a model gives their logits."""
    return SimpleNamespace(router_logits=tuple(torch.tensor(layer).log() for layer in layers))


def test_load_and_loss_by_hand() -> None:
    one = outputs([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5 - 1e-6], [0.25, 0.75]])
    assert expert_load(one, 1) == [[0.75, 0.25]]
    # f = 3/4, 1/4; P = 2.25/4, 1.75/4; 2 x (f . P)
    expected = 2 * (0.75 * 2.25 / 4 + 0.25 * 1.75 / 4)
    assert load_balancing_loss(one, 1).item() == pytest.approx(expected, abs=1e-5)


def test_an_even_load_costs_1_and_a_collapse_the_number_of_experts() -> None:
    even = outputs([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1],
                    [0.1, 0.1, 0.1, 0.7]])  # fmt: skip
    dead = outputs([[1 - 3e-9, 1e-9, 1e-9, 1e-9]] * 4)
    assert load_balancing_loss(even, 1).item() == pytest.approx(1.0)
    assert load_balancing_loss(dead, 1).item() == pytest.approx(4.0)


def test_layers_that_collapse_on_different_experts_do_not_look_even() -> None:
    left, right = [[0.999, 0.001]] * 3, [[0.001, 0.999]] * 3
    assert load_balancing_loss(outputs(left, right), 1).item() == pytest.approx(2 * 0.999)


def test_what_is_masked_does_not_count() -> None:
    rows = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    mask = torch.tensor([[1, 1], [1, 0]])
    assert expert_load(outputs(rows), 1, mask) == expert_load(outputs(rows[:3]), 1)
    some = load_balancing_loss(outputs(rows), 1, mask)
    assert some.item() == pytest.approx(load_balancing_loss(outputs(rows[:3]), 1).item())


def test_several_choices_add_up_to_1() -> None:
    load = expert_load(outputs([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), 2)
    assert load[0] == pytest.approx([0.25, 0.5, 0.25])
    assert load_line(load) == "expert load (1 is even) by layer: 0.75-1.50"


# the alarm

EVEN = [[0.25] * 4]
ONE_DEAD = [[0.34, 0.33, 0.33, 0.0]]
NARROW = [[0.97, 0.01, 0.01, 0.01]]


def test_an_expert_that_nobody_chooses_raises_the_alarm_after_n_steps() -> None:
    assert collapsed([ONE_DEAD] * 2, steps=3) == []
    (alarm,) = collapsed([EVEN] + [ONE_DEAD] * 3, steps=3)
    assert (alarm.layer, alarm.expert, alarm.value) == (0, 3, 0.0)
    assert str(alarm) == "layer 0: expert 3 is not used (share 0.00%, for 3 steps)"
    assert collapsed([ONE_DEAD, ONE_DEAD, EVEN, ONE_DEAD], steps=3) == []


def test_a_router_that_narrows_raises_the_alarm_of_its_layer() -> None:
    both = [EVEN[0], NARROW[0]]
    (alarm,) = collapsed([both] * 5, steps=5, share_floor=0.01)
    assert (alarm.layer, alarm.expert) == (1, None)
    # -(0.97 ln 0.97 + 3 x 0.01 ln 0.01) / ln 4
    assert alarm.value == pytest.approx(0.12097, abs=1e-5)
    assert "chooses few experts" in str(alarm)
    dead = collapsed([both] * 5, steps=5)  # 1 % is below a twentieth of 25 %
    assert [(one.layer, one.expert) for one in dead] == [(1, None), (1, 1), (1, 2), (1, 3)]
