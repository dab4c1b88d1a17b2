"""Losses against numbers worked by hand, and invariance to padding, masking and sharding."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.config import AlgorithmSettings
from posttrain.losses import LOSSES, TokenTensors, k3, ppo_clip

SETTINGS = AlgorithmSettings(clip_low=0.2, clip_high=0.28)


def tokens(ratios: list[float], advantages: list[float], mask: list[bool] | None = None):
    """Tokens whose ratio is as given; the engine's log-prob is -1 everywhere."""
    logprobs = torch.tensor([math.log(r) - 1 for r in ratios], dtype=torch.float64)
    return TokenTensors(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=torch.full_like(logprobs, -1.0),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        mask=torch.tensor(mask if mask is not None else [True] * len(ratios), dtype=torch.bool),
    )


# ratio, advantage -> loss = -min(r A, clip(r, 0.8, 1.28) A), d loss / d logprob, clipped
#   1.0,  2: min(2, 2)        = 2     -> -2.0,  -r A = -2.0
#   1.5,  1: min(1.5, 1.28)   = 1.28  -> -1.28, 0: the constant was chosen
#   1.5, -1: min(-1.5, -1.28) = -1.5  ->  1.5,  -r A = 1.5
#   0.5,  1: min(0.5, 0.8)    = 0.5   -> -0.5,  -r A = -0.5
#   0.5, -1: min(-0.5, -0.8)  = -0.8  ->  0.8,  0: the constant was chosen
CASES = [
    (1.0, 2.0, -2.0, -2.0, 0),
    (1.5, 1.0, -1.28, 0.0, 1),
    (1.5, -1.0, 1.5, 1.5, 0),
    (0.5, 1.0, -0.5, -0.5, 0),
    (0.5, -1.0, 0.8, 0.0, 1),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "clipped"), CASES)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient, clipped) -> None:
    batch = tokens([ratio], [advantage])
    found, metrics = ppo_clip(batch, SETTINGS)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert batch.logprobs.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert metrics["clipped"].item() == clipped


def test_the_loss_of_several_tokens_is_their_sum() -> None:
    batch = tokens([case[0] for case in CASES], [case[1] for case in CASES])
    found, metrics = ppo_clip(batch, SETTINGS)
    assert found.item() == pytest.approx(-2.0 - 1.28 + 1.5 - 0.5 + 0.8, abs=1e-6)
    assert metrics["clipped"].item() == 2
    assert metrics["ratio"].item() == pytest.approx(1 + 1.5 + 1.5 + 0.5 + 0.5)
    assert metrics["ratio_max"].item() == pytest.approx(1.5)
    # |log 1| + 2 |log 1.5| + 2 |log 0.5| = 0 + 0.810930 + 1.386294
    assert metrics["logprob_gap"].item() == pytest.approx(2.197225, abs=1e-5)
    # r - 1 - log r: 0 + 2 (0.5 - 0.405465) + 2 (-0.5 + 0.693147) = 0.189070 + 0.386294
    assert metrics["kl"].item() == pytest.approx(0.575364, abs=1e-5)


def test_k3_by_hand() -> None:
    # x = log 2: 2 - log 2 - 1 = 0.306853;  x = -log 2: 0.5 + log 2 - 1 = 0.193147;  x = 0: 0
    found = k3(torch.tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.306853, 0.193147, 0.0], abs=1e-6)


def test_the_kl_term_pulls_towards_the_reference() -> None:
    # pi = exp(-1), reference twice as likely: y = log 2, k3 = 0.306853, d k3 / d logprob = 1 - 2.
    batch = tokens([1.0], [0.0])
    reference = batch.logprobs.detach() + math.log(2)
    batch = TokenTensors(
        batch.logprobs, batch.old_logprobs, batch.advantages, batch.mask, ref_logprobs=reference
    )
    loss, metrics = ppo_clip(batch, AlgorithmSettings(kl_coef=0.1))
    loss.backward()
    assert loss.item() == pytest.approx(0.0306853, abs=1e-6)
    assert metrics["kl_ref"].item() == pytest.approx(0.306853, abs=1e-6)
    assert batch.logprobs.grad.item() == pytest.approx(-0.1, abs=1e-6)


def test_the_entropy_bonus_is_subtracted() -> None:
    batch = tokens([1.0, 1.0], [0.0, 0.0], [True, False])
    entropy = torch.tensor([1.5, 99.0], dtype=torch.float64, requires_grad=True)
    batch = TokenTensors(
        batch.logprobs, batch.old_logprobs, batch.advantages, batch.mask, entropy=entropy
    )
    loss, metrics = ppo_clip(batch, AlgorithmSettings(entropy_coef=0.01))
    loss.backward()
    assert loss.item() == pytest.approx(-0.015)
    assert metrics["entropy"].item() == pytest.approx(1.5)
    assert entropy.grad.tolist() == pytest.approx([-0.01, 0.0])


@pytest.mark.parametrize("coefficient", ["kl_coef", "entropy_coef"])
def test_a_term_without_its_tensor_is_an_error(coefficient: str) -> None:
    with pytest.raises(ValueError, match=coefficient):
        ppo_clip(tokens([1.0], [1.0]), AlgorithmSettings(**{coefficient: 0.1}))


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_out_cannot_matter(name: str) -> None:
    """NaN and infinities behind the mask change neither loss, metrics nor gradient."""
    plain = tokens([1.1, 0.7], [1.0, -2.0])
    nan = float("nan")
    ratios, advantages = [1.1, 1.0, 0.7, 1.0], [1.0, nan, -2.0, float("inf")]
    padded = tokens(ratios, advantages, [True, False, True, False])
    padded.old_logprobs[1] = nan
    loss, metrics = LOSSES[name](plain, SETTINGS)
    loss_padded, metrics_padded = LOSSES[name](padded, SETTINGS)
    loss.backward()
    loss_padded.backward()
    assert loss_padded.item() == loss.item()
    assert {k: v.item() for k, v in metrics.items()} == {
        k: v.item() for k, v in metrics_padded.items()
    }
    gradient = plain.logprobs.grad.tolist()
    assert padded.logprobs.grad.tolist() == [gradient[0], 0.0, gradient[1], 0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_shards_add_up(name: str) -> None:
    ratios = [0.5, 0.9, 1.0, 1.2, 1.6]
    advantages = [1.0, -1.0, 0.5, 2.0, -0.5]
    whole, metrics = LOSSES[name](tokens(ratios, advantages), SETTINGS)
    parts = [
        LOSSES[name](tokens(ratios[s], advantages[s]), SETTINGS) for s in (slice(2), slice(2, 5))
    ]
    assert whole.item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-12)
    for metric, value in metrics.items():
        shares = [found[metric].item() for _, found in parts]
        expected = max(shares) if metric.endswith("_max") else sum(shares)
        assert value.item() == pytest.approx(expected, rel=1e-12), metric


def test_no_tokens_is_zero() -> None:
    loss, metrics = ppo_clip(tokens([], []), SETTINGS)
    assert loss.item() == 0
    assert all(value.item() == 0 for value in metrics.values())
