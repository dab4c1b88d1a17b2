"""Advantages against numbers worked by hand, against brute force, and their invariants."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.advantages import (
    ADVANTAGES,
    StepRewards,
    TokenRewards,
    gae_returns,
    per_group,
    whiten,
)

GROUP = ["grpo", "dr_grpo", "rloo", "maxrl", "pass_at_k"]
TOKEN = sorted(name for name in ADVANTAGES if "tokens" in ADVANTAGES.resolve(name).needs)
STEP = sorted(set(ADVANTAGES) - set(TOKEN))


def of(name, *groups, greedy=(), turns=(), lengths=(), log_ratios=(), **own):
    """The advantages of a step of these groups."""
    step = StepRewards(tuple(map(tuple, groups)), tuple(greedy), turns, lengths, log_ratios)
    return ADVANTAGES.resolve({"name": name, **own})(step)


def of_group(name, rewards, **own):
    (found,) = of(name, rewards, **own)
    return found


def step_of(groups):
    """A step with everything that any group function may ask for."""
    return StepRewards(
        values=tuple(map(tuple, groups)),
        greedy=(0.5,) * len(groups),
        turn_values=tuple(((0.0, 0.25),) * len(group) for group in groups),
        lengths=tuple((3,) * len(group) for group in groups),
        log_ratios=tuple((0.5,) * len(group) for group in groups),
    )


# one group, by hand


def test_grpo_by_hand():
    # rewards 1, 0, 0, 1: mean 1/2, sample variance (4 * 1/4) / 3 = 1/3, deviation 0.57735
    # (1 - 1/2) / (0.57735 + 0.0001) = 0.865875
    found = of_group("grpo", [1.0, 0.0, 0.0, 1.0])
    assert found == pytest.approx([0.865875, -0.865875, -0.865875, 0.865875], abs=1e-6)


def test_an_unjudged_sample_is_absent_not_zero():
    # without the None: rewards 1, 0: mean 1/2, deviation sqrt(1/2) = 0.707107
    advantages = of_group("grpo", [1.0, None, 0.0])
    assert advantages[1] is None
    assert advantages[0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))
    assert advantages[2] == pytest.approx(-0.5 / (math.sqrt(0.5) + 1e-4))


# rewards 1, 0, 0, 0: mean 1/4
#   dr_grpo  1 - 1/4 = 3/4, and 0 - 1/4
#   rloo     1 - 0 = 1, and 0 - (1 + 0 + 0) / 3 = -1/3
#   maxrl    (3/4) / (1/4) = 3, and (-1/4) / (1/4) = -1
#   pass_at_k, k = 2: of the 6 pairs 3 hold the 1: M = 1/2. M_0 = 1; another is in 3 pairs, one of
#            them with the 1: M_i = 1/3. S = sqrt(1/2 * 1/2) = 1/2: (1 - 1/2) / 0.5001, and
#            (1/3 - 1/2) / 0.5001
BY_HAND = [
    ("dr_grpo", {}, [0.75, -0.25, -0.25, -0.25]),
    ("rloo", {}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ("maxrl", {}, [3.0, -1.0, -1.0, -1.0]),
    ("pass_at_k", {"k": 2}, [0.5 / 0.5001, *[-1 / 6 / 0.5001] * 3]),
    ("pass_at_k", {"k": 2, "std": False}, [0.5, -1 / 6, -1 / 6, -1 / 6]),
]


@pytest.mark.parametrize(("name", "own", "expected"), BY_HAND)
def test_one_group_by_hand(name, own, expected):
    found = of_group(name, [1.0, 0.0, 0.0, 0.0], **own)
    assert found == pytest.approx(expected, rel=1e-12)


# a whole step, by hand: groups (1, 0) and (1, 1, None), judged rewards 1, 0, 1, 1


def test_reinforce_by_hand():
    # mean 3/4
    assert of("reinforce", [1.0, 0.0], [1.0, 1.0, None]) == [[0.25, -0.75], [0.25, 0.25, None]]
    assert of("reinforce", [1.0, 0.0], baseline="none") == [[1.0, 0.0]]


def test_reinforce_plus_plus_by_hand():
    # mean 3/4, sample variance (3 * 1/16 + 9/16) / 3 = 1/4, deviation 1/2
    first, second = of("reinforce++", [1.0, 0.0], [1.0, 1.0, None])
    assert first == pytest.approx([0.25 / 0.5001, -0.75 / 0.5001])
    assert second[:2] == pytest.approx([0.25 / 0.5001] * 2) and second[2] is None


def test_reinforce_plus_plus_with_baseline_by_hand():
    # minus the group's mean: 1/2, -1/2, 0, 0; mean 0, sample variance (1/4 + 1/4) / 3 = 1/6
    first, second = of("reinforce++_baseline", [1.0, 0.0], [1.0, 1.0, None])
    scale = math.sqrt(1 / 6) + 1e-4
    assert first == pytest.approx([0.5 / scale, -0.5 / scale])
    assert second == [0.0, 0.0, None]


def test_remax_by_hand():
    found = of("remax", [1.0, 0.0, None], [0.5, 0.25], greedy=[1.0, 0.25])
    assert found == [[0.0, -1.0, None], [0.25, 0.0]]


def test_remax_leaves_out_a_group_whose_baseline_was_not_judged():
    assert of("remax", [1.0, 0.0], [1.0, 0.0], greedy=[None, 0.0]) == [[None, None], [1.0, 0.0]]
    with pytest.raises(ValueError, match="greedy"):
        of("remax", [1.0, 0.0])


def test_rejection_keeps_the_right_and_the_shortest():
    rewards, lengths = [1.0, 0.0, 1.0, None, 1.0], ((9, 2, 5, 1, 5),)
    assert of_group("rejection", rewards) == [1.0, 0.0, 1.0, None, 1.0]
    # right are 0, 2 and 4, of 9, 5 and 5 tokens: the shortest one is 2, of equals the first
    assert of_group("rejection", rewards, keep=1, lengths=lengths) == [0.0, 0.0, 1.0, None, 0.0]
    assert of_group("rejection", rewards, keep=2, lengths=lengths) == [0.0, 0.0, 1.0, None, 1.0]
    assert of_group("rejection", [0.4, 0.6], threshold=0.5) == [0.0, 1.0]
    with pytest.raises(ValueError, match="lengths"):
        of_group("rejection", rewards, keep=1)


def test_turns_by_hand():
    # Reward-to-go with gamma 1/2, the outcome added to the last turn:
    #   a: turns 0, 1, outcome 1: (0 + (1 + 1) / 2, 2) = (1, 2)
    #   b: turns 1, 0, outcome 0: (1 + 0, 0)           = (1, 0)
    #   c: turn  0, outcome 0:    (0,)
    # turn 0: mean 2/3; turn 1, which c has not: mean 1
    turns = (((0.0, 1.0), (1.0, 0.0), (0.0,)),)
    (found,) = of("turns", [1.0, 0.0, 0.0], turns=turns, gamma=0.5, std=False)
    assert found[0] == pytest.approx([1 / 3, 1.0])
    assert found[1] == pytest.approx([1 / 3, -1.0])
    assert found[2] == pytest.approx([-2 / 3])
    # deviations: turn 0 of (1, 1, 0) is sqrt(1/3), turn 1 of (2, 0) is sqrt(2)
    (scaled,) = of("turns", [1.0, 0.0, 0.0], turns=turns, gamma=0.5)
    assert scaled[0] == pytest.approx(
        [(1 / 3) / (math.sqrt(1 / 3) + 1e-4), 1 / (math.sqrt(2) + 1e-4)]
    )


def test_turns_of_one_turn_is_grpo():
    rewards = [1.0, 0.0, None, 0.5]
    (found,) = of("turns", rewards, turns=(((0.0,),) * 4,))
    assert [None if a is None else a[0] for a in found] == of_group("grpo", rewards)
    assert of("turns", [1.0, 0.0], turns=(((), (0.0,)),)) == [[[], [0.0]]]  # an episode of no turn


# what they promise


def subsets_by_enumeration(rewards, k):
    """Best reward of every subset of k: (mean, deviation, mean over those with sample i)."""
    best = {s: max(rewards[i] for i in s) for s in itertools.combinations(range(len(rewards)), k)}
    of_each = [statistics.fmean(b for s, b in best.items() if i in s) for i in range(len(rewards))]
    return statistics.fmean(best.values()), statistics.pstdev(best.values()), of_each


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 3.0]), min_size=3, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(rewards, data):
    k = data.draw(st.integers(1, len(rewards) - 1))
    mean, deviation, of_each = subsets_by_enumeration(rewards, k)
    plain = of_group("pass_at_k", rewards, k=k, std=False)
    assert plain == pytest.approx([one - mean for one in of_each], abs=1e-12)
    scaled = of_group("pass_at_k", rewards, k=k)
    expected = [(one - mean) / (deviation + 1e-4) for one in of_each]
    assert scaled == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pass_at_k_where_no_subset_can_fail():
    assert of_group("pass_at_k", [0.3, 0.1, 0.2, 0.3, 0.3], k=4) == [0.0] * 5


@pytest.mark.parametrize(("right", "k"), [(1, 2), (3, 2), (2, 4), (5, 3)])
def test_pass_at_k_is_the_closed_form_of_the_paper(right, k):
    # arXiv:2508.10751: with n wrong of G, R = 1 - C(n, k) / C(G, k), S = sqrt(R (1 - R)),
    # A_right = (1 - R) / S,   A_wrong = (1 - R - C(n - 1, k - 1) / C(G - 1, k - 1)) / S;
    # the 1e-4 beside S is ours
    size, wrong = 8, 8 - right
    mean = 1 - math.comb(wrong, k) / math.comb(size, k)
    scale = math.sqrt(mean * (1 - mean)) + 1e-4
    found = of_group("pass_at_k", [1.0] * right + [0.0] * wrong, k=k)
    lost = math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)
    assert found[0] == pytest.approx((1 - mean) / scale)
    assert found[-1] == pytest.approx((1 - mean - lost) / scale)


def test_online_dpo_by_hand():
    # best: reward 3, h = 1.5; worst: reward 0, h = -0.5; beta = 0.5: margin 0.5 * 2 = 1
    # 0.5 * sigmoid(-1) = 0.5 * 0.268941 = 0.134471
    (found, tie) = of(
        "online_dpo",
        [0.0, None, 1.0, 3.0],
        [0.7, 0.7, None, 0.7],
        log_ratios=((-0.5, None, 9.0, 1.5), (0.0, 1.0, None, 2.0)),
        beta=0.5,
    )
    assert found == pytest.approx([-0.134471, None, 0.0, 0.134471], abs=1e-6)
    assert tie == [0.0, 0.0, None, 0.0]


def test_online_dpo_has_no_overflow():
    for ratios, expected in (((1e4, -1e4), 0.0), ((-1e4, 1e4), 1.0)):  # beta * sigmoid(-+2e4)
        (found,) = of("online_dpo", [1.0, 0.0], log_ratios=(ratios,), beta=1.0)
        assert found == pytest.approx([expected, -expected])


def expected_gradient(name, p, size, **own):
    """d/dp of what the advantages ascend: E[mean_i A_i d log P(r_i) / dp], by enumeration.

    The policy is one coin: reward 1 with probability p, else 0.
    """
    total = 0.0
    for rewards in itertools.product([0.0, 1.0], repeat=size):
        chance = math.prod(p if r else 1 - p for r in rewards)
        scores = [1 / p if r else -1 / (1 - p) for r in rewards]
        advantages = of_group(name, rewards, **own)
        total += chance * statistics.fmean(a * s for a, s in zip(advantages, scores, strict=True))
    return total


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_each_ascends_in_expectation(p):
    size, q = 5, 1 - p
    # rloo: d p / dp = 1, without bias
    assert expected_gradient("rloo", p, size) == pytest.approx(1.0)
    # dr_grpo: the sample's own reward in its baseline takes a share of 1 / G
    assert expected_gradient("dr_grpo", p, size) == pytest.approx((size - 1) / size)
    # maxrl: d/dp of the first G - 1 terms of log p = -sum_k (1 - p)^k / k
    series = sum(q ** (k - 1) for k in range(1, size))
    assert expected_gradient("maxrl", p, size) == pytest.approx(series)
    # pass@k: (1/k - 1/G) d/dp (1 - (1 - p)^k)
    for k in (1, 2, 3):
        found = expected_gradient("pass_at_k", p, size, k=k, std=False)
        assert found == pytest.approx((1 / k - 1 / size) * k * q ** (k - 1))


REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=16)
MAYBE = st.lists(st.one_of(st.none(), st.floats(0, 10)), min_size=5, max_size=9)


@settings(deadline=None)
@given(REWARDS, st.floats(-5, 5))
def test_grpo_sums_to_zero_and_ignores_a_shift(rewards, shift):
    advantages = [a for a in of_group("grpo", rewards) if a is not None]
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-6)
    if max(rewards) - min(rewards) > 1e-3:  # below that, adding the shift rounds the signal away
        shifted = of_group("grpo", [r + shift for r in rewards])
        assert shifted == pytest.approx(advantages, abs=1e-6)


@settings(deadline=None)
@given(REWARDS)
def test_rloo_is_dr_grpo_times_g_over_g_minus_1(rewards):
    factor = len(rewards) / (len(rewards) - 1)
    expected = [factor * a for a in of_group("dr_grpo", rewards)]
    assert of_group("rloo", rewards) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.lists(MAYBE, min_size=1, max_size=4))
def test_none_stays_none_and_nothing_else_becomes_it(groups):
    step = step_of(groups)
    for name in STEP:
        found = ADVANTAGES.resolve(name)(step)
        assert [[a is None for a in group] for group in found] == [
            [r is None for r in group] for group in groups
        ], name


@pytest.mark.parametrize("name", ["dr_grpo", "rloo", "maxrl", "reinforce++_baseline"])
@settings(deadline=None)
@given(rewards=MAYBE)
def test_advantages_of_a_group_sum_to_zero(name, rewards):
    found = [a for a in of_group(name, rewards) if a is not None]
    scale = max([1.0, *map(abs, found)])
    assert math.fsum(found) == pytest.approx(0.0, abs=1e-9 * scale)


@pytest.mark.parametrize("name", GROUP)
@pytest.mark.parametrize(
    "rewards", [[1.0, 1.0, 1.0], [0.3, None, 0.3], [0.7, None, None], [None, None, None], [0.0] * 3]
)
def test_a_group_without_signal_has_no_gradient(name, rewards):
    own = {"k": 2} if name == "pass_at_k" else {}
    expected = [None if reward is None else 0.0 for reward in rewards]
    assert of_group(name, rewards, **own) == expected


@pytest.mark.parametrize("name", ["reinforce", "reinforce++", "reinforce++_baseline"])
def test_a_step_of_equal_rewards_has_no_gradient(name):
    assert of(name, [0.5, 0.5], [None, 0.5]) == [[0.0, 0.0], [None, 0.0]]


@pytest.mark.parametrize("name", STEP)
def test_a_better_sample_never_has_a_smaller_advantage(name):
    rewards = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    (found,) = ADVANTAGES.resolve(name)(step_of([rewards]))
    flat = [a if isinstance(a, float) else a[-1] for a in found]
    assert flat == sorted(flat)
    assert flat[0] < flat[-1]


def test_a_group_function_is_lifted_group_by_group():
    """Groups do not see each other, and the settings and the docstring are the function's own."""
    assert of("grpo", [1.0, 0.0], [5.0, 0.0, 0.0]) == [
        of_group("grpo", [1.0, 0.0]),
        of_group("grpo", [5.0, 0.0, 0.0]),
    ]

    def best(rewards_G, *, bonus: float = 1.0):
        """The best gets a bonus."""
        top = max(r for r in rewards_G if r is not None)
        return [None if r is None else bonus * (r == top) for r in rewards_G]

    lifted = per_group(best)
    assert lifted(StepRewards(((1.0, None, 0.0),)), bonus=2.0) == [[2.0, None, 0.0]]
    assert lifted.__doc__ == "The best gets a bonus."


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match=r"k = 4 must be below the group's 4"):
        of_group("pass_at_k", [1.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"maxrl needs rewards of at least 0, got -1"):
        of_group("maxrl", [1.0, -1.0])
    with pytest.raises(ValueError, match="turns needs"):
        of_group("turns", [1.0, 0.0])
    with pytest.raises(ValueError, match="online_dpo needs"):
        of_group("online_dpo", [1.0, 0.0])
    with pytest.raises(ValueError, match="2 groups and 1 greedy"):
        StepRewards(((1.0,), (1.0,)), greedy=(1.0,))
    with pytest.raises(ValueError, match="lengths of shape"):
        StepRewards(((1.0, 0.0),), lengths=((1,),))


# tokens


def sample(rewards, values=None, teacher=None, logprobs=None, mask=None):
    """A sample whose tokens the model wrote all, unless ``mask`` says otherwise."""

    def array(given):
        return None if given is None else np.array(given)

    n = len(rewards)
    written = np.array([True] * n if mask is None else mask)
    logprobs = np.full(n, -1.0) if logprobs is None else np.array(logprobs)
    return TokenRewards(array(rewards), written, logprobs, array(values), array(teacher))


def of_tokens(name, one, **own):
    return ADVANTAGES.resolve({"name": name, **own})(one).tolist()


def test_gae_by_hand():
    # gamma 0.9, lam 0.5, rewards 0, 0, 1, values 0.5, 0.4, 0.6
    #   d_2 = 1 - 0.6 = 0.4            A_2 = 0.4
    #   d_1 = 0.9 * 0.6 - 0.4 = 0.14   A_1 = 0.14 + 0.45 * 0.4 = 0.32
    #   d_0 = 0.9 * 0.4 - 0.5 = -0.14  A_0 = -0.14 + 0.45 * 0.32 = 0.004
    one = sample([0.0, 0.0, 1.0], [0.5, 0.4, 0.6])
    found = of_tokens("gae", one, gamma=0.9, lam=0.5)
    assert found == pytest.approx([0.004, 0.32, 0.4])
    assert gae_returns(one, np.array(found)) == pytest.approx([0.504, 0.72, 1.0])


def test_gae_of_lam_1_is_the_return_minus_the_value():
    one = sample([0.0, 0.25, 1.0], [0.5, 0.4, 0.6])
    assert of_tokens("gae", one) == pytest.approx([0.75, 0.85, 0.4])


def test_gae_of_lam_0_is_one_step():
    one = sample([0.0, 0.25, 1.0], [0.5, 0.4, 0.6])
    assert of_tokens("gae", one, lam=0.0) == pytest.approx([-0.1, 0.45, 0.4])


def test_gae_steps_over_what_the_model_did_not_write():
    """The environment's tokens are part of the next state: with or without them, the same."""
    nan = float("nan")
    mask = [False, True, False, False, True, True, False]
    longer = sample(
        [nan, 0.0, nan, 9.0, 0.0, 1.0, nan], [nan, 0.5, nan, 9.0, 0.4, 0.6, nan], mask=mask
    )
    short = of_tokens("gae", sample([0.0, 0.0, 1.0], [0.5, 0.4, 0.6]), gamma=0.9, lam=0.5)
    found = of_tokens("gae", longer, gamma=0.9, lam=0.5)
    assert found == [0.0, short[0], 0.0, 0.0, short[1], short[2], 0.0]
    returns = gae_returns(longer, np.array(found))
    assert returns == pytest.approx([0.0, 0.504, 0.0, 0.0, 0.72, 1.0, 0.0])


def test_process_by_hand():
    # gamma 1/2, rewards 1, 0, 2: 1 + 0 + 2/4, 0 + 2/2, 2
    assert of_tokens("process", sample([1.0, 0.0, 2.0]), gamma=0.5) == [1.5, 1.0, 2.0]
    masked = sample([1.0, float("nan"), 2.0], mask=[True, False, True])
    assert of_tokens("process", masked, gamma=0.5) == [2.0, 0.0, 2.0]


def test_distill_by_hand():
    # teacher - student: -1 + 2 = 1, -3 + 2 = -1, -0.5 + 40 = 39.5, clipped to 10
    one = sample([0.0] * 3, teacher=[-1.0, -3.0, -0.5], logprobs=[-2.0, -2.0, -40.0])
    assert of_tokens("distill", one) == [1.0, -1.0, 10.0]
    assert of_tokens("distill", one, clip=0.5) == [0.5, -0.5, 0.5]


def test_distill_ascends_minus_the_reverse_kl():
    # E_student[log teacher - log student] = -KL(student, teacher), here over 3 tokens
    student, teacher = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    one = sample([0.0] * 3, teacher=np.log(teacher), logprobs=np.log(student))
    found = np.array(of_tokens("distill", one))
    assert (student * found).sum() == pytest.approx(-(student * np.log(student / teacher)).sum())


@pytest.mark.parametrize(("name", "what"), [("gae", "values"), ("distill", "teacher")])
def test_what_is_needed_must_be_there(name, what):
    assert what in ADVANTAGES.resolve(name).needs
    with pytest.raises(ValueError, match=what):
        of_tokens(name, sample([0.0]))


@pytest.mark.parametrize("name", TOKEN)
def test_what_is_outside_the_mask_cannot_matter(name):
    nan, inf = float("nan"), float("inf")
    short = sample([0.0, 1.0], [0.5, 0.25], [-1.0, -2.0], [-1.5, -1.5])
    longer = sample(
        [inf, 0.0, nan, 1.0],
        [nan, 0.5, inf, 0.25],
        [nan, -1.0, -inf, -2.0],
        [inf, -1.5, nan, -1.5],
        [False, True, False, True],
    )
    first, second = of_tokens(name, short)
    assert of_tokens(name, longer) == [0.0, first, 0.0, second]
    nothing = sample([nan], [nan], [nan], [nan], [False])
    assert of_tokens(name, nothing) == [0.0]


def test_arrays_of_a_sample_are_of_one_length():
    with pytest.raises(ValueError, match="differ in length"):
        TokenRewards(np.zeros(2), np.ones(2, np.bool_), np.zeros(3))


def test_whiten_by_hand():
    # written: 1, 3, 2: mean 2, sample deviation 1
    found = whiten(
        [np.array([1.0, float("nan")]), np.array([3.0, 2.0])],
        [np.array([True, False]), np.array([True, True])],
    )
    assert [one.tolist() for one in found] == [
        pytest.approx([-1.0, 0.0]),
        pytest.approx([1.0, 0.0]),
    ]


def test_whiten_of_nothing_to_compare_is_zero():
    masks = [np.array([True, True])]
    assert [a.tolist() for a in whiten([np.array([3.0, 3.0])], masks)] == [[0.0, 0.0]]
    assert whiten([], []) == []


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(0, 12))
def test_whitening_does_not_see_how_samples_are_cut(values, cut):
    array = np.array(values)
    whole = whiten([array], [np.ones(len(array), np.bool_)])[0]
    parts = [array[:cut], array[cut:]]
    pieces = whiten(parts, [np.ones(len(part), np.bool_) for part in parts])
    assert np.concatenate(pieces).tolist() == whole.tolist()
