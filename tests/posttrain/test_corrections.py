"""Off-policy weights against numbers worked by hand, and what they make of an expectation."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.corrections import CORRECTIONS, correction_metrics
from posttrain.errors import UsageError
from posttrain.losses import TokenTensors

# Three sequences of ratios (learner to engine): (2, 1.5), (0.25, 1, 1) and (1.1). Their products
# are 3, 0.25 and 1.1, their geometric means 1.732051, 0.629961 and 1.1.
RATIOS, LENGTHS = [2.0, 1.5, 0.25, 1.0, 1.0, 1.1], [2, 3, 1]

# name, settings -> weights
BY_HAND = [
    ("none", {}, [1.0] * 6),
    ("tis", {"cap": 1.2}, [1.2, 1.2, 0.25, 1.0, 1.0, 1.1]),
    ("mis", {"low": 0.5, "high": 1.6}, [0.0, 1.5, 0.0, 1.0, 1.0, 1.1]),
    ("icepop", {"low": 0.5, "high": 1.6}, [0.0, 1.5, 0.0, 1.0, 1.0, 1.1]),
    ("sequence_tis", {"cap": 2.0}, [2.0, 2.0, 0.25, 0.25, 0.25, 1.1]),
    ("sequence_mask", {"low": 0.1, "high": 2.0}, [0.0, 0.0, 0.25, 0.25, 0.25, 1.1]),
    ("sequence_mask", {"low": 0.5, "high": 4.0}, [3.0, 3.0, 0.0, 0.0, 0.0, 1.1]),
    ("geometric_mask", {"low": 0.7, "high": 1.8}, [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
    ("geometric_mask", {"low": 0.6, "high": 1.7}, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
]


def tokens(lengths, mask=None):
    n = sum(lengths)
    nothing = torch.zeros(n, dtype=torch.float64)
    return TokenTensors(
        logprobs=nothing,
        old_logprobs=nothing,
        advantages=nothing,
        mask=torch.tensor([True] * n if mask is None else mask, dtype=torch.bool),
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        n_sequences=len(lengths),
    )


def weights(name, log_ratio, batch, **settings):
    log_ratio = torch.tensor(log_ratio, dtype=torch.float64)
    return CORRECTIONS.resolve({"name": name, **settings})(log_ratio, batch)


@pytest.mark.parametrize(("name", "settings", "expected"), BY_HAND)
def test_weights_by_hand(name, settings, expected) -> None:
    found = weights(name, [math.log(r) for r in RATIOS], tokens(LENGTHS), **settings)
    assert found.tolist() == pytest.approx(expected)


def test_every_correction_is_worked_by_hand() -> None:
    assert {name for name, _, _ in BY_HAND} == set(CORRECTIONS)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_where_engine_and_learner_agree_every_token_counts_once(name) -> None:
    assert weights(name, [0.0] * 6, tokens(LENGTHS)).tolist() == [1.0] * 6


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_token_that_tells_nothing_stays_finite(name) -> None:
    for extreme in (1e4, -1e4):
        found = weights(name, [extreme] * 6, tokens(LENGTHS))
        assert found.isfinite().all()
    whole = weights("tis", [1e4], tokens([1]), cap=1e30)
    assert whole.item() == pytest.approx(math.exp(20))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_filling_does_not_weigh_on_its_sequence(name) -> None:
    """Filling carries the number of some sequence; its log-ratio, 0 there, must not count."""
    plain = weights(name, [0.3, 0.1, -0.2], tokens([2, 1]))
    batch = tokens([2, 3], [True, True, True, False, False])
    filled = weights(name, [0.3, 0.1, -0.2, 0.0, 0.0], batch)
    assert filled[:3].tolist() == plain.tolist()


def test_metrics_by_hand() -> None:
    # weights 2, 1, 0, and filling: sum 3, squares 5, one masked. Of 3 tokens the effective sample
    # size is 3^2 / 5 = 1.8, as a share 0.6.
    batch = tokens([4], [True, True, True, False])
    found = correction_metrics(torch.tensor([2.0, 1.0, 0.0, 0.0]), batch)
    sums = {name: value.item() for name, value in found.items()}
    largest = sums.pop("correction_weight_max")
    assert largest == 2.0
    assert sums == {"correction_weight": 3.0, "correction_weight_sq": 5.0, "correction_masked": 1.0}
    means = {name: value / 3 for name, value in sums.items()}
    share = means["correction_weight"] ** 2 / means["correction_weight_sq"]
    assert share == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tis", {"cap": 100.0}),
        ("mis", {"low": 0.0, "high": 100.0}),
        ("sequence_tis", {"cap": 100.0}),
    ],
)
def test_without_a_bound_in_reach_an_expectation_is_the_learners(name, settings) -> None:
    """E_engine[w f] = E_learner[f], by enumeration over one token of five."""
    engine = torch.log_softmax(torch.tensor([0.1, -0.5, 0.3, 0.9, 0.0], dtype=torch.float64), 0)
    learner = torch.log_softmax(torch.tensor([0.4, 0.5, -0.3, 0.1, 0.2], dtype=torch.float64), 0)
    value = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    found = weights(name, (learner - engine).tolist(), tokens([1] * 5), **settings)
    corrected = (engine.exp() * found * value).sum()
    assert corrected.item() == pytest.approx((learner.exp() * value).sum().item())


@pytest.mark.parametrize(
    "choice",
    [
        {"name": "tis", "cap": 0.5},
        {"name": "mis", "high": 0.9},
        {"name": "sequence_mask", "low": 1.5},
        {"name": "geometric_mask", "low": -0.1},
    ],
)
def test_a_bound_on_the_wrong_side_of_1(choice) -> None:
    with pytest.raises(UsageError, match=f"correction '{choice['name']}'"):
        CORRECTIONS.resolve(choice)
