"""From the groups of one step to one batch, and the numbers a step is reported with.

Decides what carries gradient. A sample that could not be judged is left out of everything. A group
whose rewards are all equal has advantage 0 and adds nothing to the gradient of the policy loss;
without a KL or an entropy term its forward pass is skipped, and its tokens still count in the
denominator, so the update is the same to the last bit of mathematics and cheaper.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.advantages import ADVANTAGES
from posttrain.batching import pack, samples_of
from posttrain.config import GrpoConfig
from posttrain.errors import RunError
from posttrain.types import Batch, FinishReason, Group, Sample
from rewards import Outcome


def make_batch(step: int, groups: Sequence[Group], config: GrpoConfig, ranks: int) -> Batch | None:
    """The packed batch of a step, or None when no group has a signal.

    Raises RunError when more of the step than ``grpo.max_invalid_share`` could not be judged.
    """
    refuse_invalid(step, groups, config.grpo.max_invalid_share)
    advantage_of = ADVANTAGES[config.algorithm.advantage]
    samples: list[Sample] = []
    for group in groups:
        advantages_G = advantage_of(group.values)
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            if advantage is not None and rollout.turns:
                samples += samples_of(rollout, advantage)
    n_loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    if config.algorithm.kl_coef == 0 and config.algorithm.entropy_coef == 0:
        samples = [sample for sample in samples if sample.advantages.any()]
    if not any(sample.loss_mask.any() for sample in samples):
        return None
    batch = pack(samples, config.learner.tokens_per_row, ranks, step)
    return dataclasses.replace(batch, n_loss_tokens=n_loss_tokens)


def refuse_invalid(step: int, groups: Sequence[Group], max_share: float) -> None:
    """Stop a run whose rewards are broken, with the first traceback."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lost = [rollout for rollout in rollouts if not rollout.score.judged]
    if len(lost) > max_share * len(rollouts):
        raise RunError(
            f"step {step}: {len(lost)} of {len(rollouts)} samples could not be judged, more than "
            f"grpo.max_invalid_share = {max_share:g} allows. The first is {lost[0].rollout_id}:\n"
            f"{lost[0].score.detail}"
        )


def step_record(step: int, groups: Sequence[Group]) -> dict[str, Any]:
    """Rewards, outcomes, lengths and staleness of a step's rollouts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    values = [rollout.score.value for rollout in rollouts if rollout.score.value is not None]
    outcomes = Counter(str(rollout.score.outcome) for rollout in rollouts)
    lengths = [rollout.n_completion_tokens for rollout in rollouts]
    lags = [
        step - int(version)
        for rollout in rollouts
        for turn in rollout.turns
        for version in np.unique(turn.completion.weight_versions)
    ]
    cut = sum(
        any(turn.completion.finish_reason is FinishReason.LENGTH for turn in rollout.turns)
        for rollout in rollouts
    )
    return {
        "reward_mean": statistics.fmean(values) if values else None,
        "reward_std": statistics.pstdev(values) if values else None,
        "accuracy": outcomes[Outcome.CORRECT] / len(values) if values else None,
        "outcomes": dict(outcomes),
        "reward_parts": _parts(groups),
        "groups": len(groups),
        "groups_without_signal": sum(_without_signal(group) for group in groups),
        "invalid_samples": len(rollouts) - len(values),
        "completion_length_mean": statistics.fmean(lengths),
        "completion_length_max": max(lengths),
        "truncated_share": cut / len(rollouts),
        "prompt_tokens": sum(len(r.turns[-1].prompt_ids) for r in rollouts if r.turns),
        "completion_tokens": sum(lengths),
        "lag_mean": statistics.fmean(lags) if lags else 0.0,
        "lag_max": max(lags, default=0),
    }


def _without_signal(group: Group) -> bool:
    judged = {value for value in group.values if value is not None}
    return len(judged) < 2


def _parts(groups: Sequence[Group]) -> dict[str, float]:
    """Mean of each named part of the reward over the samples that have it."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for rollout in group.rollouts:
            for name, value in rollout.score.parts.items():
                found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in sorted(found.items())}
