"""From the groups of one step to one batch, and the numbers a step is reported with.

Decides what carries gradient. A sample that could not be judged is left out of everything; so is
one cut at its length limit where ``grpo.mask_truncated`` says so, and, where groups are refilled,
every group whose rewards are all equal. Without refills such a group has advantage 0 and adds
nothing to the gradient of the policy loss; its forward pass is skipped where nothing else needs it,
and its tokens still count in the denominator, so the update is the same and cheaper.

What an advantage needs of each token beside rewards is asked first: the critic's values and the
log-probs of policy and reference of the learner or of a server, the teacher's of its server.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.advantages import StepRewards, TokenRewards, gae_returns, whiten
from posttrain.algorithm import Algorithm
from posttrain.batching import pack, samples_of
from posttrain.config import GrpoConfig
from posttrain.engines.logprob_server import LogprobServer
from posttrain.errors import RunError
from posttrain.losses import denominator
from posttrain.types import Batch, FinishReason, Floats, Group, Learner, Rollout, Sample
from rewards import Outcome

# "values", "reference", "policy", "teacher" -> [T] of each sample
PerToken = Mapping[str, Sequence[Floats]]


@dataclass(frozen=True, slots=True)
class Credit:
    """Makes batches; ``servers`` are the algorithm's, by role."""

    config: GrpoConfig
    algorithm: Algorithm
    learner: Learner
    servers: Mapping[str, LogprobServer] = field(default_factory=dict)
    attention_at: float = math.inf  # see ``batching``

    async def batch(self, step: int, groups: Sequence[Group]) -> Batch | None:
        """The packed batch of a step, or None when nothing in it has a signal.

        Raises RunError when more of the step than ``grpo.max_invalid_share`` could not be judged.
        """
        refuse_invalid(step, groups, self.config.grpo.max_invalid_share)
        if self.config.grpo.max_refills:
            groups = [group for group in groups if not without_signal(group)]
        trained = [[r for r in group.rollouts if self._teaches(r)] for group in groups]
        drafts = [samples_of(rollout, 0.0) for members in trained for rollout in members]
        per_token = await self._examine(step, [sample for own in drafts for sample in own])
        if self.algorithm.per_token:
            samples = self._by_token(trained, drafts, per_token)
        else:
            samples = self._by_group(groups, trained, drafts, per_token)
        if samples and "reference" in self.servers:
            samples = _with_reference(samples, drafts, per_token["reference"])
        n_loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
        share = denominator(
            self.config.algorithm.aggregation,
            n_loss_tokens,
            len(samples),
            self.config.rollout.max_tokens,
        )
        if not self.algorithm.trains_everything:
            samples = [sample for sample in samples if sample.advantages.any()]
        if not any(sample.loss_mask.any() for sample in samples):
            return None
        learner = self.config.learner
        ranks = self.learner.world_size
        batch = pack(samples, learner.tokens_per_row, ranks, step, share, self.attention_at)
        return dataclasses.replace(batch, train_policy=step >= self.algorithm.critic_warmup)

    def _teaches(self, rollout: Rollout) -> bool:
        cut = self.config.grpo.mask_truncated and is_truncated(rollout)
        return bool(rollout.turns) and rollout.score.judged and not cut

    # what is asked of the learner and the teacher

    async def _examine(self, step: int, samples: Sequence[Sample]) -> PerToken:
        found: dict[str, Sequence[Floats]] = {}
        asked = self.algorithm.asks_learner
        if samples and asked:
            settings = self.config.learner
            batch = pack(samples, settings.tokens_per_row, self.learner.world_size, step)
            for what in asked:
                rows = await self.learner.examine(batch, what)
                found[what] = _of_samples(samples, batch, rows)
        for role, server in self.servers.items() if samples else ():
            found[role] = await server.logprobs([sample.token_ids for sample in samples])
        return found

    # advantages

    def _by_group(
        self,
        groups: Sequence[Group],
        trained: Sequence[Sequence[Rollout]],
        drafts: Sequence[Sequence[Sample]],
        per_token: PerToken,
    ) -> list[Sample]:
        penalties = iter(self._penalties(drafts, per_token))
        ratios = iter(self._log_ratios(drafts, per_token))
        values: dict[str, float | None] = {}
        log_ratios: dict[str, float] = {}
        for members in trained:
            for rollout in members:
                value = rollout.score.value
                values[rollout.rollout_id] = None if value is None else value - next(penalties)
                log_ratios[rollout.rollout_id] = next(ratios)
        advantages = self.algorithm.advantage(step_rewards(groups, values, log_ratios))
        samples: list[Sample] = []
        for group, advantages_G in zip(groups, advantages, strict=True):
            for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
                if advantage is not None and rollout.rollout_id in values:
                    samples += samples_of(rollout, advantage)
        return samples

    def _penalties(self, drafts: Sequence[Sequence[Sample]], per_token: PerToken) -> list[float]:
        """What the KL to the reference costs each rollout, where it is part of the reward."""
        if not self.algorithm.kl_in_reward:
            return [0.0] * len(drafts)
        reference = iter(per_token.get("reference", ()))  # of no draft at all nothing was asked
        return [
            float(sum(self.algorithm.kl_cost(s, next(reference)).sum() for s in own))
            for own in drafts
        ]

    def _log_ratios(self, drafts: Sequence[Sequence[Sample]], per_token: PerToken) -> list[float]:
        """log pi - log pi_ref of each rollout, where the advantage looks at it."""
        if not self.algorithm.log_ratios:
            return [0.0] * len(drafts)
        found = zip(
            (sample.loss_mask for own in drafts for sample in own),
            per_token.get("policy", ()),  # of no draft at all nothing was asked
            per_token.get("reference", ()),
            strict=True,
        )
        gaps = iter(
            [float((own - other)[mask].sum(dtype=np.float64)) for mask, own, other in found]
        )
        return [sum(next(gaps) for _ in own) for own in drafts]

    def _by_token(
        self,
        trained: Sequence[Sequence[Rollout]],
        drafts: Sequence[Sequence[Sample]],
        per_token: PerToken,
    ) -> list[Sample]:
        samples = [sample for own in drafts for sample in own]
        rollouts = [rollout for members in trained for rollout in members]
        rewards_T = [
            rewards
            for rollout, own in zip(rollouts, drafts, strict=True)
            for rewards in token_rewards(rollout, own)
        ]
        seen = []
        for i, sample in enumerate(samples):
            rewards = rewards_T[i]
            if self.algorithm.kl_in_reward:
                rewards = rewards - self.algorithm.kl_cost(sample, per_token["reference"][i])
            extra = {name: per_token[name][i] for name in ("values",) if name in per_token}
            if "teacher" in per_token:
                extra["teacher_logprobs"] = per_token["teacher"][i]
            seen.append(TokenRewards(rewards, sample.loss_mask, sample.logprobs, **extra))
        raw = [self.algorithm.advantage(one) for one in seen]
        final = whiten(raw, [one.mask for one in seen]) if self.algorithm.whitens else raw
        made = []
        for sample, one, own, advantages in zip(samples, seen, raw, final, strict=True):
            sample = dataclasses.replace(sample, advantages=np.asarray(advantages, np.float32))
            if one.values is not None:
                returns = gae_returns(one, own).astype(np.float32)
                sample = dataclasses.replace(sample, values=one.values, returns=returns)
            made.append(sample)
        return made


def _of_samples(
    samples: Sequence[Sample], batch: Batch, rows: Sequence[Sequence[Floats]]
) -> list[Floats]:
    """Arrays of the targets of each [rank][row], as arrays [T] of each sample, 0 elsewhere."""
    found = [np.zeros(len(sample), np.float32) for sample in samples]
    for members_B, arrays_B in zip(batch.members, rows, strict=True):
        for members, array in zip(members_B, arrays_B, strict=True):
            counts = [int(samples[i].loss_mask.sum()) for i in members]
            parts = np.split(array, np.cumsum(counts)[:-1]) if members else []
            for i, part in zip(members, parts, strict=True):
                found[i][samples[i].loss_mask] = part
    return found


def _with_reference(
    samples: Sequence[Sample], drafts: Sequence[Sequence[Sample]], reference: Sequence[Floats]
) -> list[Sample]:
    """The samples with the reference's log-probs, which are those of the drafts, in order."""
    arrays = iter(reference)
    of_rollout = {own[0].rollout_id: iter([next(arrays) for _ in own]) for own in drafts if own}
    return [dataclasses.replace(s, reference=next(of_rollout[s.rollout_id])) for s in samples]


def step_rewards(
    groups: Sequence[Group],
    values: Mapping[str, float | None],
    log_ratios: Mapping[str, float],
) -> StepRewards:
    """What a group function sees; both by rollout id, a rollout not in them is None."""
    return StepRewards(
        values=tuple(tuple(values.get(r.rollout_id) for r in g.rollouts) for g in groups),
        greedy=tuple(g.greedy.score.value for g in groups if g.greedy is not None),
        turn_values=tuple(tuple(r.turn_values for r in g.rollouts) for g in groups),
        lengths=tuple(tuple(r.n_completion_tokens for r in g.rollouts) for g in groups),
        log_ratios=tuple(tuple(log_ratios.get(r.rollout_id) for r in g.rollouts) for g in groups),
    )


def token_rewards(rollout: Rollout, samples: Sequence[Sample]) -> list[Floats]:
    """Per sample of the episode [T]: a turn's reward on its last token, the outcome's on the last.

    Where history was rewritten, each turn's reward is in the sample that has the turn, and the
    outcome in the last one.
    """
    rewards_T = [np.zeros(len(sample), np.float32) for sample in samples]
    lengths = [len(turn.completion) for turn in rollout.turns]
    ends = np.cumsum(lengths)  # in tokens written
    places = [(i, t) for i, sample in enumerate(samples) for t in np.flatnonzero(sample.loss_mask)]
    for turn, end in enumerate(ends):
        if lengths[turn] and rollout.turn_values:
            i, t = places[end - 1]
            rewards_T[i][t] += rollout.turn_values[turn]
    if places:
        i, t = places[-1]
        rewards_T[i][t] += rollout.score.value or 0.0
    return rewards_T


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


def is_truncated(rollout: Rollout) -> bool:
    """Whether any of its completions was cut at its length limit."""
    return any(turn.completion.finish_reason is FinishReason.LENGTH for turn in rollout.turns)


def without_signal(group: Group) -> bool:
    """Whether every judged sample has the same reward, so that comparing them teaches nothing."""
    judged = {value for value in group.values if value is not None}
    return len(judged) < 2


def step_record(step: int, groups: Sequence[Group]) -> dict[str, Any]:
    """Rewards, outcomes, lengths and staleness of a step's rollouts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    values = [rollout.score.value for rollout in rollouts if rollout.score.value is not None]
    outcomes = Counter(str(rollout.score.outcome) for rollout in rollouts)
    lengths = [rollout.n_completion_tokens for rollout in rollouts]
    lags = _lags(step, rollouts)
    cut = sum(is_truncated(rollout) for rollout in rollouts)
    return {
        "reward_mean": statistics.fmean(values) if values else None,
        "reward_std": statistics.pstdev(values) if values else None,
        "accuracy": outcomes[Outcome.CORRECT] / len(values) if values else None,
        "outcomes": dict(outcomes),
        "reward_parts": _means(r.score.parts for r in rollouts),
        "env_info": _means(r.info for r in rollouts),
        "end_reasons": dict(Counter(str(r.end_reason) for r in rollouts)),
        "groups": len(groups),
        "groups_without_signal": sum(without_signal(group) for group in groups),
        "invalid_samples": len(rollouts) - len(values),
        "completion_length_mean": statistics.fmean(lengths),
        "completion_length_max": max(lengths),
        "truncated_share": cut / len(rollouts),
        "prompt_tokens": sum(len(r.turns[-1].prompt_ids) for r in rollouts if r.turns),
        "completion_tokens": sum(lengths),
        "lag_mean": sum(lag * n for lag, n in lags.items()) / max(lags.total(), 1),
        "lag_max": max(lags, default=0),
        "lag_tokens": {str(lag): lags[lag] for lag in sorted(lags)},
    }


def _lags(step: int, rollouts: Sequence[Rollout]) -> Counter[int]:
    """Tokens by lag: optimiser steps from the weights that wrote them to those they train."""
    versions = [turn.completion.weight_versions for r in rollouts for turn in r.turns]
    lags, counts = np.unique(step - np.concatenate([[], *versions]), return_counts=True)
    return Counter(dict(zip(lags.astype(int).tolist(), counts.tolist(), strict=True)))


def _means(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each named number over the rollouts that have it."""
    found: dict[str, list[float]] = {}
    for one in several:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in sorted(found.items())}
