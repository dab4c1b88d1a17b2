"""Losses against numbers worked by hand, golden steps, and invariance to padding and sharding."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from posttrain.advantages import ADVANTAGES, StepRewards
from posttrain.corrections import CORRECTIONS
from posttrain.losses import (
    AGGREGATIONS,
    KLS,
    LOSSES,
    LossParts,
    TokenTensors,
    denominator,
    k3,
    kl_coef,
    policy_loss,
)
from posttrain.presets import PRESETS


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(ratios, advantages, mask=None, lengths=None, **more):
    """Tokens whose ratio is as given; the engine's log-prob is -1 everywhere.

    ``lengths`` cuts them into sequences, by default one of all.
    """
    logprobs = vector([math.log(r) - 1 for r in ratios])
    lengths = [len(ratios)] if lengths is None else lengths
    return TokenTensors(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=torch.full_like(logprobs, -1.0),
        advantages=vector(advantages),
        mask=torch.tensor(mask if mask is not None else [True] * len(ratios), dtype=torch.bool),
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        n_sequences=len(lengths),
        **more,
    )


def parts(loss="ppo_clip", **choices) -> LossParts:
    """Parts by choice; what is not given is off."""
    registries = {"correction": CORRECTIONS, "kl": KLS, "aggregation": AGGREGATIONS}
    bound = {
        name: registries[name].resolve(choices.pop(name)) for name in set(choices) & {*registries}
    }
    return LossParts(loss=LOSSES.resolve(loss), **bound, **choices)


def found(batch, **choices):
    """(loss, gradient of the log-probs, metrics) of a row."""
    loss, metrics = policy_loss(batch, parts(**choices))
    loss.backward()
    gradient = batch.logprobs.grad.tolist()
    batch.logprobs.grad = None
    return loss.item(), gradient, {name: value.item() for name, value in metrics.items()}


# ppo_clip
#
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
    value, slope, metrics = found(tokens([ratio], [advantage]))
    assert value == pytest.approx(loss, abs=1e-12)
    assert slope == pytest.approx([gradient], abs=1e-12)
    assert metrics["clipped"] == clipped


def test_the_loss_of_several_tokens_is_their_sum() -> None:
    value, _, metrics = found(tokens([case[0] for case in CASES], [case[1] for case in CASES]))
    assert value == pytest.approx(-2.0 - 1.28 + 1.5 - 0.5 + 0.8, abs=1e-12)
    assert metrics["clipped"] == 2
    assert metrics["ratio"] == pytest.approx(1 + 1.5 + 1.5 + 0.5 + 0.5)
    assert metrics["ratio_max"] == pytest.approx(1.5)
    # |log 1| + 2 |log 1.5| + 2 |log 0.5| = 0 + 0.810930 + 1.386294
    assert metrics["logprob_gap"] == pytest.approx(2.197225, abs=1e-5)
    # r - 1 - log r: 0 + 2 (0.5 - 0.405465) + 2 (-0.5 + 0.693147) = 0.189070 + 0.386294
    assert metrics["kl"] == pytest.approx(0.575364, abs=1e-5)


def test_dual_clip_by_hand() -> None:
    # dual 3, A = -1: r = 5: min(-5, -1.28) = -5, raised to 3 A = -3: loss 3, no gradient.
    # r = 2: -2 is above -3: as without. A = 1: untouched whatever r.
    dual = {"name": "ppo_clip", "dual": 3.0}
    value, slope, metrics = found(tokens([5.0, 2.0, 0.5], [-1.0, -1.0, 1.0]), loss=dual)
    assert value == pytest.approx(3.0 + 2.0 - 0.5)
    assert slope == pytest.approx([0.0, 2.0, -0.5])
    assert metrics["clipped"] == 1
    assert found(tokens([5.0], [-1.0]))[0] == pytest.approx(5.0)


# the other losses


def test_reinforce_by_hand() -> None:
    # log-probs log 2 - 1 and -1: -(1 * (0.693147 - 1)) - (-2 * -1); the gradient is -A
    value, slope, _ = found(tokens([2.0, 1.0], [1.0, -2.0]), loss="reinforce")
    assert value == pytest.approx(0.306853 - 2.0, abs=1e-6)
    assert slope == pytest.approx([-1.0, 2.0])


def test_sft_by_hand() -> None:
    """A negative advantage is not unlearned."""
    value, slope, _ = found(tokens([2.0, 1.0], [1.0, -2.0]), loss="sft")
    assert value == pytest.approx(0.306853, abs=1e-6)
    assert slope == pytest.approx([-1.0, 0.0])


# gspo, low 0.5, high 0.5; sequences of ratios (2, 0.5) and (4, 1), geometric means 1 and 2
#   A = 1:  min(1, 1) = 1; min(2, 1.5) = 1.5, clipped
#   Each token carries it: token losses -1, -1, -1.5, -1.5. Mean over the tokens of a sequence:
#   -1 - 1.5 = -2.5. d s / d logprob_t = s / 2, so with the mean the gradient is -1/2 for each
#   token of the first, 0 for the second.
def test_gspo_by_hand() -> None:
    loss = {"name": "gspo", "low": 0.5, "high": 0.5}
    batch = tokens([2.0, 0.5, 4.0, 1.0], [1.0] * 4, lengths=[2, 2])
    value, slope, metrics = found(batch, loss=loss, aggregation="sequence")
    assert value == pytest.approx(-2.5)
    assert slope == pytest.approx([-0.5, -0.5, 0.0, 0.0])
    assert metrics["clipped"] == 2
    assert found(batch, loss=loss)[0] == pytest.approx(-5.0)


def test_gspo_has_the_gradient_of_the_papers_formula() -> None:
    """-min(s A, clip(s) A), eq. 5, with s as a function of every token, differentiated as it is."""
    ratios, lengths = [1.1, 0.7, 1.3, 0.9, 1.0], [3, 2]
    batch = tokens(ratios, [0.5, 0.5, 0.5, -1.0, -1.0], lengths=lengths)
    loss = {"name": "gspo", "low": 0.3, "high": 0.3}
    value, slope, _ = found(batch, loss=loss, aggregation="sequence")
    direct = vector(0.0)
    for rows, advantage in ((slice(0, 3), 0.5), (slice(3, 5), -1.0)):
        s = torch.exp((batch.logprobs[rows] - batch.old_logprobs[rows]).mean())
        direct = direct - torch.minimum(s * advantage, s.clamp(0.7, 1.3) * advantage)
    direct.backward()
    assert value == pytest.approx(direct.item(), rel=1e-12)
    assert slope == pytest.approx(batch.logprobs.grad.tolist(), rel=1e-12)


def test_gspo_gives_each_token_its_own_advantage() -> None:
    # GSPO-token, section 4.3: at s = 1 the gradient of token t is -A_t / 2
    batch = tokens([1.0, 1.0], [3.0, -1.0])
    _, slope, _ = found(batch, loss="gspo", aggregation="sequence")
    assert slope == pytest.approx([-1.5, 0.5])


def test_cispo_by_hand() -> None:
    # high 1: weights min(r, 2): 1, 2 (of 4) and 0.5; loss -w A log pi with log pi = log r - 1
    #   -(1 * 1 * -1) = 1;   -(2 * -1 * 0.386294) = 0.772589;   -(0.5 * 2 * -1.693147) = 1.693147
    # The gradient is -w A: no token is dropped.
    loss = {"name": "cispo", "high": 1.0}
    value, slope, metrics = found(tokens([1.0, 4.0, 0.5], [1.0, -1.0, 2.0]), loss=loss)
    assert value == pytest.approx(1 + 0.772589 + 1.693147, abs=1e-6)
    assert slope == pytest.approx([-1.0, 2.0, -1.0])
    assert metrics["clipped"] == 1
    _, slope, _ = found(tokens([0.5], [1.0]), loss={"name": "cispo", "low": 0.2})
    assert slope == pytest.approx([-0.8])


# KL


def test_kl_estimates_by_hand() -> None:
    # y = log 2: -0.693147, 0.480453 / 2, 2 - log 2 - 1 = 0.306853
    # y = -log 2: 0.693147, 0.480453 / 2, 0.5 + log 2 - 1 = 0.193147; y = 0: 0
    ratio = vector([math.log(2), -math.log(2), 0.0])
    expected = {
        "k1": [-0.693147, 0.693147, 0.0],
        "k2": [0.240227, 0.240227, 0.0],
        "k3": [0.306853, 0.193147, 0.0],
        "none": [0.0, 0.0, 0.0],
    }
    for name in KLS:
        assert KLS.resolve(name)(ratio).tolist() == pytest.approx(expected[name], abs=1e-6)
    assert k3(ratio).tolist() == KLS.resolve("k3")(ratio).tolist()


def test_the_kl_term_pulls_towards_the_reference() -> None:
    # pi = exp(-1), reference twice as likely: y = log 2, k3 = 0.306853, d k3 / d logprob = 1 - 2.
    batch = tokens([1.0], [0.0], ref_logprobs=vector([math.log(2) - 1]))
    value, slope, metrics = found(batch, kl={"name": "k3", "coef": 0.1})
    assert value == pytest.approx(0.0306853, abs=1e-6)
    assert metrics["kl_ref"] == pytest.approx(0.306853, abs=1e-6)
    assert slope == pytest.approx([-0.1], abs=1e-12)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_what_a_kl_descends_on_average(name) -> None:
    """By enumeration of a categorical: k1 nothing, k2 KL(pi, ref), k3 KL(ref, pi)."""
    logits = vector([0.3, -0.2, 0.5, 0.0]).requires_grad_()
    reference = torch.log_softmax(vector([-0.1, 0.4, 0.2, 0.1]), 0)

    def log_policy():
        return torch.log_softmax(logits, 0)

    chances = log_policy().exp().detach()
    (chances * KLS.resolve(name)(reference - log_policy())).sum().backward()
    descended = logits.grad.clone()
    exact = {
        "k1": 0.0 * logits.sum(),
        "k2": (log_policy().exp() * (log_policy() - reference)).sum(),
        "k3": (reference.exp() * (reference - log_policy())).sum(),
    }[name]
    logits.grad = None
    exact.backward()
    assert descended.tolist() == pytest.approx(logits.grad.tolist(), abs=1e-12)
    if name != "k1":
        assert descended.abs().max() > 0.01


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name) -> None:
    policy, reference = (
        torch.log_softmax(vector([0.3, -0.2, 0.5]), 0),
        vector([0.2, 0.5, 0.3]).log(),
    )
    mean = (policy.exp() * KLS.resolve(name)(reference - policy)).sum()
    assert mean.item() == pytest.approx((policy.exp() * (policy - reference)).sum().item())


def test_a_kl_in_the_reward_is_not_in_the_loss() -> None:
    kl = {"name": "k1", "coef": 0.5, "place": "reward"}
    batch = tokens([1.0], [0.0], ref_logprobs=vector([0.0]))
    assert found(batch, kl=kl)[0] == 0.0
    assert kl_coef(KLS.resolve(kl), "reward") == 0.5
    assert kl_coef(KLS.resolve(kl), "loss") == 0.0
    assert parts(kl=kl).kl_coef == 0.0


# entropy, likelihood, aggregation


def test_the_entropy_bonus_is_subtracted() -> None:
    entropy = vector([1.5, 99.0]).requires_grad_()
    batch = tokens([1.0, 1.0], [0.0, 0.0], [True, False], entropy=entropy)
    value, _, metrics = found(batch, entropy_coef=0.01)
    assert value == pytest.approx(-0.015)
    assert metrics["entropy"] == pytest.approx(1.5)
    assert entropy.grad.tolist() == pytest.approx([-0.01, 0.0])


def test_the_likelihood_of_good_samples_is_added() -> None:
    # log-probs -1: only the sample with A > 0 adds 0.5 * 1, and -0.5 to its gradient -r A = -2
    value, slope, _ = found(tokens([1.0] * 3, [2.0, -1.0, 0.0]), sft_coef=0.5)
    assert value == pytest.approx(-2.0 + 1.0 + 0.5)
    assert slope == pytest.approx([-2.5, 1.0, 0.0])


@pytest.mark.parametrize("term", ["kl", "entropy_coef"])
def test_a_term_without_its_tensor_is_an_error(term) -> None:
    with pytest.raises(ValueError, match=term.removesuffix("_coef")):
        found(tokens([1.0], [1.0]), **{term: "k3" if term == "kl" else 0.1})


# Sequences of 1 and 3 tokens, token losses -A: -4, and -1, -1, -1
#   token:    (-4 - 3) / 4 tokens
#   sequence: (-4 / 1 - 3 / 3) / 2 sequences
#   fixed:    (-4 - 3) / (2 sequences of at most 10)
@pytest.mark.parametrize(
    ("name", "expected"), [("token", -7 / 4), ("sequence", -5 / 2), ("fixed", -7 / 20)]
)
def test_aggregation_by_hand(name, expected) -> None:
    batch = tokens([1.0] * 4, [4.0, 1.0, 1.0, 1.0], lengths=[1, 3])
    value, _, _ = found(batch, aggregation=name)
    whole = denominator(name, n_loss_tokens=4, n_sequences=2, max_tokens=10)
    assert value / whole == pytest.approx(expected)


def test_an_aggregation_weighs_every_term() -> None:
    kl = {"name": "k3", "coef": 0.1}
    rest = {"kl": kl, "entropy_coef": 0.01, "sft_coef": 0.5, "aggregation": "sequence"}
    twice = [
        found(
            tokens(
                [0.9] * n, [1.0] * n, entropy=vector([2.0] * n), ref_logprobs=vector([-1.2] * n)
            ),
            **rest,
        )[0]
        for n in (1, 4)
    ]
    assert twice[0] == pytest.approx(twice[1], rel=1e-12)


def test_an_aggregation_without_a_denominator() -> None:
    with pytest.raises(ValueError, match="fixed, sequence, token"):
        denominator("median", 1, 1, 1)


# what the ratio is taken against


def test_with_a_correction_the_ratio_is_against_the_learner() -> None:
    # Engine log-prob -1, learner log 1.5 - 1. Without a correction r = 1.5 is clipped for A = 1.
    # With tis the ratio is 1 with gradient, and the token counts min(1.5, 2) times.
    value, slope, metrics = found(tokens([1.5], [1.0]), correction="tis")
    assert value == pytest.approx(-1.5)
    assert slope == pytest.approx([-1.5])
    assert metrics["clipped"] == 0
    assert metrics["ratio"] == pytest.approx(1.5)  # as before: learner to engine


def test_in_a_later_update_of_a_step_the_ratio_is_against_its_beginning() -> None:
    # engine -1, beginning of the step log 1.2 - 1, now log 1.8 - 1: the ratio is 1.5, clipped at
    # 1.28 for A = 1 and free for A = -1; the weight is 1.2
    prox = vector([math.log(1.2) - 1] * 2)
    batch = tokens([1.8, 1.8], [1.0, -1.0], prox_logprobs=prox)
    value, slope, _ = found(batch, correction="tis")
    assert value == pytest.approx(1.2 * (-1.28 + 1.5))
    assert slope == pytest.approx([0.0, 1.2 * 1.5])
    # without a correction the engine stays what is compared with
    assert found(batch)[0] == pytest.approx(-1.28 + 1.8)


# every loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_good_token_is_made_likelier_and_a_bad_one_less(name) -> None:
    """Near the engine: raising a log-prob lowers the loss where A > 0, and the reverse."""
    for correction in ("none", "tis"):
        batch = tokens([1.0, 1.0001, 1.0001], [1.0, 1.0, -1.0], lengths=[1, 1, 1])
        _, slope, _ = found(batch, loss=name, correction=correction)
        assert slope[0] < 0 and slope[1] < 0
        assert slope[2] > 0 or name == "sft"
        step = dataclasses.replace(batch, logprobs=batch.logprobs.detach() - vector(slope) * 1e-5)
        down = policy_loss(step, parts(name))[0].item()
        if name != "sft" and correction == "none":
            assert down < policy_loss(batch, parts(name))[0].item()


FULL = {
    "kl": {"name": "k2", "coef": 0.3},
    "entropy_coef": 0.02,
    "sft_coef": 0.1,
    "aggregation": "sequence",
}
EVERY = [(loss, correction) for loss in LOSSES for correction in CORRECTIONS]


def rich(ratios, advantages, lengths, mask=None, filling=()):
    """Tokens with everything that any term looks at; at ``filling`` it is not a number."""
    n = len(ratios)
    batch = tokens(ratios, advantages, mask, lengths)
    extra = {
        "old_logprobs": -1.0 + 0.01 * vector(advantages),
        "prox_logprobs": batch.logprobs.detach() - 0.02 * vector(advantages),
        "entropy": 1.0 + 0.1 * vector(advantages),
        "ref_logprobs": -1.1 + 0.1 * vector(advantages),
    }
    for at in filling:
        extra["advantages"] = batch.advantages
        for values in extra.values():
            values[at] = float("nan") if at % 2 else float("inf")
    assert all(len(values) == n for values in extra.values())
    return dataclasses.replace(batch, **extra)


@pytest.mark.parametrize(("loss", "correction"), EVERY)
def test_what_is_masked_out_cannot_matter(loss, correction) -> None:
    """NaN and infinities behind the mask change neither loss, metrics nor gradient."""
    plain = found(
        rich([1.1, 0.7, 1.0], [1.0, 1.0, -2.0], [2, 1]), loss=loss, correction=correction, **FULL
    )
    padded = rich(
        [1.1, 1.0, 0.7, 1.0, 1.0, 9.0],
        [1.0, 0.0, 1.0, -2.0, 0.0, 0.0],
        [3, 3],
        [True, False, True, True, False, False],
        filling=(1, 4, 5),
    )
    with torch.no_grad():
        padded.logprobs[5] = float("nan")
    value, slope, metrics = found(padded, loss=loss, correction=correction, **FULL)
    assert value == plain[0]
    assert metrics == plain[2]
    first, second, third = plain[1]
    assert slope == [first, 0.0, second, third, 0.0, 0.0]


@pytest.mark.parametrize(("loss", "correction"), EVERY)
def test_shards_add_up(loss, correction) -> None:
    """Whole sequences may lie in any row: loss, metrics and gradients are sums (or maxima)."""
    ratios, advantages = [0.5, 0.9, 1.0, 1.2, 1.6], [1.0, 1.0, 0.5, 0.5, 0.5]
    value, slope, metrics = found(
        rich(ratios, advantages, [2, 3]), loss=loss, correction=correction, **FULL
    )
    shards = [
        found(
            rich(ratios[s], advantages[s], [len(ratios[s])]),
            loss=loss,
            correction=correction,
            **FULL,
        )
        for s in (slice(2), slice(2, 5))
    ]
    assert value == pytest.approx(sum(shard[0] for shard in shards), rel=1e-12)
    assert slope == pytest.approx(shards[0][1] + shards[1][1], rel=1e-12)
    for metric, whole in metrics.items():
        shares = [shard[2][metric] for shard in shards]
        expected = max(shares) if metric.endswith("_max") else sum(shares)
        assert whole == pytest.approx(expected, rel=1e-12), metric


@pytest.mark.parametrize(("loss", "correction"), EVERY)
def test_no_tokens_is_zero(loss, correction) -> None:
    empty = tokens([], [], entropy=vector([]), ref_logprobs=vector([]))
    value, slope, metrics = found(empty, loss=loss, correction=correction, **FULL)
    assert value == 0 and slope == []
    assert all(value == 0 for value in metrics.values())


# golden steps


def ten_steps(**choices) -> list[float]:
    """The loss of each of 10 SGD steps of a softmax policy of 2 states x 5 actions, float64.

    The data are fixed: 12 tokens in 4 sequences, written by an engine whose logits are given.
    """
    states = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    actions = torch.tensor([0, 3, 2, 1, 4, 4, 1, 0, 3, 2, 2, 0])
    engine = vector([[0.1, -0.2, 0.3, 0.0, -0.1], [0.2, 0.1, -0.3, 0.05, 0.0]])
    reference = vector([[0.0, 0.1, 0.0, 0.2, -0.1], [-0.1, 0.0, 0.1, 0.0, 0.1]])

    def taken(logits):
        return torch.log_softmax(logits, -1)[states, actions]

    logits = vector([[0.15, -0.2, 0.25, 0.0, -0.1], [0.2, 0.2, -0.3, 0.0, 0.0]]).requires_grad_()
    start = taken(logits).detach()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    chosen, losses = parts(**choices), []
    for _ in range(10):
        log_all = torch.log_softmax(logits, -1)[states]
        batch = TokenTensors(
            logprobs=taken(logits),
            old_logprobs=taken(engine),
            advantages=vector([1.5] * 3 + [-0.5] * 4 + [0.5] * 2 + [-1.0] * 3),
            mask=torch.ones(12, dtype=torch.bool),
            sequence=torch.repeat_interleave(torch.arange(4), torch.tensor([3, 4, 2, 3])),
            n_sequences=4,
            prox_logprobs=start,
            entropy=-(log_all.exp() * log_all).sum(-1),
            ref_logprobs=taken(reference),
        )
        loss = policy_loss(batch, chosen)[0] / denominator(chosen.aggregation.name, 12, 4, 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# name -> the choices of ``ten_steps`` and the ten losses it gave, at full precision.
GOLDEN = json.loads((Path(__file__).parent / "golden_steps.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_ten_steps_are_what_they_were(name) -> None:
    golden = GOLDEN[name]
    assert ten_steps(**golden["choices"]) == pytest.approx(golden["losses"], rel=1e-12, abs=1e-15)


GOLDEN_PRESETS = json.loads((Path(__file__).parent / "golden_presets.json").read_text())


def choices_of(preset: str) -> dict:
    """What a preset says of the loss, as ``ten_steps`` takes it."""
    chosen = {name: value for name, (value, _) in PRESETS[preset].settings.items()}
    named = ("loss", "correction", "kl", "aggregation")
    return {name: chosen[f"algorithm.{name}"] for name in named}


@pytest.mark.parametrize("preset", PRESETS)
def test_ten_steps_of_a_preset_are_what_they_were(preset) -> None:
    golden = GOLDEN_PRESETS[preset]
    assert ten_steps(**choices_of(preset)) == pytest.approx(golden, rel=1e-12, abs=1e-15)


def test_every_function_has_golden_steps() -> None:
    text = str([golden["choices"] for golden in GOLDEN.values()])
    for registry in (LOSSES, CORRECTIONS, KLS, AGGREGATIONS):
        missing = [name for name in registry if name != "none" and f"'{name}'" not in text]
        assert not missing, f"{registry.kind}: {missing}"


def test_online_dpos_gradient_is_that_of_the_pair_loss():
    """Advantages from log-probs looked at before + "reinforce" = autograd of the DPO loss.

    Two groups; sequences of 3, 1, 2 and 2, 4 tokens; the middle one of the first group is neither
    best nor worst and gets no gradient.
    """
    generator = torch.Generator().manual_seed(0)
    lengths, beta = [3, 1, 2, 2, 4], 0.3
    logprobs = -torch.rand(12, generator=generator, dtype=torch.float64) * 3
    reference = -torch.rand(12, generator=generator, dtype=torch.float64) * 3
    pairs = [(2, 0), (3, 4)]  # (best, worst)

    def sums(values):
        return torch.stack([part.sum() for part in values.split(lengths)])

    direct = logprobs.clone().requires_grad_()
    h = sums(direct) - sums(reference)
    margins = torch.stack([beta * (h[best] - h[worst]) for best, worst in pairs])
    (-torch.nn.functional.logsigmoid(margins)).sum().backward()

    ratios = (sums(logprobs) - sums(reference)).tolist()
    seen = StepRewards(
        values=((0.0, 0.5, 1.0), (2.0, -1.0)), log_ratios=(tuple(ratios[:3]), tuple(ratios[3:]))
    )
    groups = ADVANTAGES.resolve({"name": "online_dpo", "beta": beta})(seen)
    per_sequence = vector([a for group in groups for a in group])
    batch = dataclasses.replace(
        tokens([1.0] * 12, [0.0] * 12, lengths=lengths),
        logprobs=logprobs.clone().requires_grad_(),
        advantages=torch.repeat_interleave(per_sequence, torch.tensor(lengths)),
    )
    _, gradient, _ = found(batch, loss="reinforce", aggregation="fixed")
    assert gradient == pytest.approx(direct.grad.tolist(), abs=1e-12)
    assert gradient[3] == 0.0
