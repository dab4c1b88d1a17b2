"""What of a step carries gradient: masks, refills, denominators, and credit by token."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from envs import EndReason
from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig, make_config
from posttrain.errors import RunError, UsageError
from posttrain.step import Credit, step_record, token_rewards
from posttrain.types import GREEDY, Batch, Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score


def config_of(**sections: Any) -> GrpoConfig:
    return make_config({"model": "m", "env": "e", **sections})


def completion(n: int, cut: bool = False) -> Completion:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    return Completion(np.arange(n) + 5, np.full(n, -1.0, np.float32), np.zeros(n, np.int64), reason)


def rollout(name: str, value: float | None, n: int = 2, cut: bool = False, **more: Any) -> Rollout:
    outcome = Outcome.ERROR if value is None else Outcome.CORRECT if value >= 1 else Outcome.WRONG
    index = GREEDY if name.endswith("greedy") else int(name.rpartition("-")[2])
    turns = more.pop("turns", (Turn(np.arange(3), completion(n, cut)),))
    score = Score(value, outcome, detail="why")
    return Rollout(name, "task", index, turns, (), score, EndReason.DONE, **more)


def group(prompt: int, values: list[float | None], n: int = 2, **more: Any) -> Group:
    members = [rollout(f"0-{prompt}-{i}", value, n) for i, value in enumerate(values)]
    return Group(0, prompt, tuple(members), **more)


class Examined:
    """A learner that is only asked: every target's value is its token's id, whatever is asked."""

    world_size = 1

    async def examine(self, batch: Batch, what: str) -> list[list[np.ndarray]]:
        self.asked = what
        if what == "policy":
            return [[row.logprobs[row.loss_mask] for row in rank] for rank in batch.rows]
        if what == "reference":
            return [[row.logprobs[row.loss_mask] - 0.5 for row in rank] for rank in batch.rows]
        return [
            [row.token_ids[row.loss_mask].astype(np.float32) for row in rank] for rank in batch.rows
        ]


class Reference:
    """A server that finds each token half as likely, in nats 0.5 less, as these engines do."""

    async def logprobs(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [np.full(len(ids), -1.5, np.float32) - ids / 100 for ids in sequences]


def batch_of(groups: list[Group], step: int = 0, **sections: Any) -> Batch | None:
    config = config_of(**sections)
    algorithm = Algorithm.of(config.algorithm)
    servers: Any = {role: Reference() for role in algorithm.servers}
    credit = Credit(config, algorithm, Examined(), servers)  # type: ignore[arg-type]
    return asyncio.run(credit.batch(step, groups))


def advantages(batch: Batch) -> list[float]:
    """Of the tokens with a loss, sorted."""
    (row,) = batch.rows[0]
    return sorted(round(float(a), 4) for a in row.advantages[row.loss_mask])


def test_a_group_without_signal_is_not_computed_and_still_counts() -> None:
    batch = batch_of([group(0, [1.0, 0.0]), group(1, [1.0, 1.0])])
    assert batch is not None
    assert batch.n_tokens == 4  # two samples of two tokens
    assert batch.denominator == 8.0  # all four samples


def test_with_refills_a_group_without_signal_does_not_count() -> None:
    groups = [group(0, [1.0, 0.0]), group(1, [1.0, 1.0])]
    batch = batch_of(groups, grpo={"max_refills": 2})
    assert batch is not None
    assert batch.denominator == 4.0
    assert batch_of(groups[1:], grpo={"max_refills": 2}) is None


def test_an_unjudged_sample_is_absent() -> None:
    batch = batch_of([group(0, [1.0, 0.0, None])])
    assert batch is not None
    # mean 1/2 and deviation sqrt(1/2) of the two that were judged
    size = round(0.5 / (math.sqrt(0.5) + 1e-4), 4)
    assert advantages(batch) == [-size, -size, size, size]
    assert batch.denominator == 4.0


def test_more_unjudged_than_allowed_stops_the_run() -> None:
    with pytest.raises(RunError, match=r"2 of 3 samples could not be judged.*0-0-1"):
        batch_of([group(0, [1.0, None, None])])


def test_a_truncated_sample_is_masked_when_asked() -> None:
    members = (
        rollout("0-0-0", 1.0, 2),
        rollout("0-0-1", 0.0, 2),
        rollout("0-0-2", 0.0, 4, cut=True),
    )
    cut = Group(0, 0, members)
    whole = batch_of([cut])
    masked = batch_of([cut], grpo={"mask_truncated": True})
    assert whole is not None
    assert masked is not None
    assert (whole.n_tokens, whole.denominator) == (8, 8.0)
    assert (masked.n_tokens, masked.denominator) == (4, 4.0)


@pytest.mark.parametrize(
    ("aggregation", "denominator"), [("token", 8.0), ("sequence", 4.0), ("fixed", 4 * 64.0)]
)
def test_the_denominator_follows_the_aggregation(aggregation: str, denominator: float) -> None:
    groups = [group(0, [1.0, 0.0]), group(1, [1.0, 1.0])]
    batch = batch_of(groups, algorithm={"aggregation": aggregation})
    assert batch is not None
    assert batch.denominator == denominator


def test_remax_subtracts_the_greedy_answers_reward() -> None:
    greedy = rollout("0-0-greedy", 1.0)
    batch = batch_of([group(0, [1.0, 0.0], greedy=greedy)], algorithm={"advantage": "remax"})
    assert batch is not None
    assert advantages(batch) == [-1.0, -1.0]  # 1 - 1 = 0 is not computed, 0 - 1


def test_a_kl_in_the_reward_lowers_it() -> None:
    """k1 = log pi - log ref = 0.5 at each of 2 and 4 tokens, times 0.1."""
    members = (rollout("0-0-0", 1.0, 2), rollout("0-0-1", 1.0, 4))
    batch = batch_of(
        [Group(0, 0, members)],
        algorithm={"advantage": "dr_grpo", "kl": {"name": "k1", "coef": 0.1, "place": "reward"}},
    )
    assert batch is not None
    # 1 - 0.1 and 1 - 0.2: the mean is 0.85
    assert advantages(batch) == [-0.05] * 4 + [0.05] * 2


URL = "http://127.0.0.1:9"  # nobody is asked


def test_a_reference_behind_a_server_travels_with_the_tokens() -> None:
    members = (rollout("0-0-0", 1.0, 2), rollout("0-0-1", 0.0, 4), rollout("0-0-2", None, 1))
    kl = {"name": "k3", "coef": 0.1, "reference": URL}
    batch = batch_of([Group(0, 0, members)], algorithm={"kl": kl})
    assert batch is not None
    (row,) = batch.rows[0]
    assert row.reference is not None
    found = row.reference[row.loss_mask].tolist()
    ids = row.token_ids[row.loss_mask]  # 5, 6 and 5 to 8, in some order of the two samples
    assert sorted(ids.tolist()) == [5, 5, 6, 6, 7, 8]
    assert found == pytest.approx((-1.5 - ids / 100).tolist())
    assert batch_of([Group(0, 0, members)]).rows[0][0].reference is None  # type: ignore[union-attr]


def test_a_reference_behind_a_server_lowers_the_reward_and_the_learner_is_not_asked() -> None:
    """k1 = log pi - log ref = 0.5 and id / 100: 0.55 + 0.56, and 0.55 + 0.56 + 0.57 + 0.58."""
    members = (rollout("0-0-0", 1.0, 2), rollout("0-0-1", 1.0, 4))
    kl = {"name": "k1", "coef": 0.1, "place": "reward", "reference": URL}
    algorithm = Algorithm.of(config_of(algorithm={"kl": kl}).algorithm)
    assert algorithm.kl and not algorithm.reference and algorithm.asks_learner == ()
    assert algorithm.servers == {"reference": URL}
    choices = {"advantage": "dr_grpo", "kl": kl}
    batch = batch_of([Group(0, 0, members)], algorithm=choices)
    assert batch is not None
    half = round((0.226 - 0.111) / 2, 4)  # 1 - 0.111 and 1 - 0.226, about their mean
    assert advantages(batch) == pytest.approx([-half] * 4 + [half] * 2, abs=1e-4)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_step_of_which_nothing_is_left_has_no_batch(place: str) -> None:
    cut = Group(0, 0, (rollout("0-0-0", 1.0, 2, cut=True), rollout("0-0-1", 0.0, 2, cut=True)))
    kl = {"name": "k1", "coef": 0.1, "place": place}
    for choice in (kl, kl | {"reference": URL}):
        batch = batch_of([cut], algorithm={"kl": choice}, grpo={"mask_truncated": True})
        assert batch is None


def test_without_a_coefficient_nobody_is_asked() -> None:
    kl = {"name": "k3", "coef": 0.0, "reference": URL}
    assert Algorithm.of(config_of(algorithm={"kl": kl}).algorithm).servers == {}


def test_online_dpo_pairs_the_best_and_the_worst() -> None:
    """log pi - log ref = 0.5 at each token: h = 2, 1, 1 for answers of 4, 2 and 2 tokens."""
    members = (rollout("0-0-0", 1.0, 4), rollout("0-0-1", 0.5, 2), rollout("0-0-2", 0.0, 2))
    batch = batch_of(
        [Group(0, 0, members), group(1, [1.0, 1.0])],
        algorithm={"preset": "online_dpo"},
        rollout={"max_tokens": 10},
    )
    assert batch is not None
    weight = round(0.1 / (1 + math.exp(0.1 * (2 - 1))), 4)  # beta sigmoid(-beta (h_w - h_l))
    assert advantages(batch) == [-weight] * 2 + [weight] * 4
    assert batch.denominator == 5 * 10.0  # all sequences of the step, of max_tokens


def test_gae_goes_through_the_critic() -> None:
    """Values 5, 6 of the two tokens (their ids), reward 1 on the last, gamma = lam = 1."""
    batch = batch_of(
        [group(0, [1.0])],
        algorithm={"advantage": {"name": "gae", "whiten": False, "critic_warmup": 1}},
    )
    assert batch is not None
    # A_1 = 1 - 6 = -5; A_0 = (6 - 5) + A_1 = -4; returns = A + V = 1 for both
    assert advantages(batch) == [-5.0, -4.0]
    (row,) = batch.rows[0]
    assert row.returns is not None
    assert row.values is not None
    assert row.returns[row.loss_mask].tolist() == [1.0, 1.0]
    assert row.values[row.loss_mask].tolist() == [5.0, 6.0]
    assert not batch.train_policy  # the critic learns alone in step 0


def two_turns(**more: Any) -> Rollout:
    first = Turn(np.arange(3), completion(2))
    second = Turn(np.concatenate([np.arange(3), completion(2).token_ids, [1]]), completion(3))
    return rollout("0-0-0", 1.0, turns=(first, second), **more)


def test_a_turns_reward_lies_on_its_last_token() -> None:
    from posttrain.batching import samples_of

    episode = two_turns(turn_values=(0.25, 0.0))
    (sample,) = samples_of(episode, 0.0)
    (rewards,) = token_rewards(episode, [sample])
    #        prompt   turn 0    user   turn 1
    assert rewards.tolist() == [0, 0, 0, 0, 0.25, 0, 0, 0, 1.0]


def test_turns_are_credited_one_by_one() -> None:
    better = two_turns(turn_values=(0.5, 0.0))
    worse = rollout("0-0-1", 0.0, turns=better.turns, turn_values=(0.0, 0.0))
    batch = batch_of(
        [Group(0, 0, (better, worse))], algorithm={"advantage": {"name": "turns", "std": False}}
    )
    assert batch is not None
    # to go: 0.5 + 1 and 1 against 0 and 0; means 0.75 and 0.5; turns of 2 and 3 tokens
    assert advantages(batch) == [-0.75] * 2 + [-0.5] * 3 + [0.5] * 3 + [0.75] * 2


def test_a_step_of_one_wrong_setting_is_refused_early() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.loss: unknown loss 'ppo_clib'.*'ppo_clip'"):
        Algorithm.of(config_of(algorithm={"loss": "ppo_clib"}).algorithm)


def test_the_record_counts_groups_without_signal() -> None:
    record = step_record(0, [group(0, [1.0, 0.0]), group(1, [1.0, 1.0])])
    assert (record["groups"], record["groups_without_signal"]) == (2, 1)
    assert record["accuracy"] == 0.75
