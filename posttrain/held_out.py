"""Held-out evaluation: mean reward, accuracy and pass@k, with the loop's own rollouts.

pass@k is the unbiased estimator of Chen et al. (arXiv:2107.03374): with c of n samples correct,

    pass@k = 1 - C(n - c, k) / C(n, k)

The interval on accuracy is Wilson's at 95 % with the number of *tasks* as its size: samples of one
task are not independent, so more of them narrow nothing. Samples that could not be judged are
left out and counted under ``outcomes``.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from envs import Task
from posttrain.rollout import Player
from posttrain.types import EvalResult, Group
from posttrain.waits import waiting
from rewards import Outcome

_Z = 1.959964  # 97.5 % point of the normal distribution


async def evaluate(player: Player, tasks: Sequence[Task], *, samples: int, seed: int) -> EvalResult:
    """Play ``samples`` episodes of each task and sum up."""
    return summarise(await play(player, tasks, samples=samples, seed=seed), samples)


async def play(
    player: Player, tasks: Sequence[Task], *, samples: int, seed: int, first: int = 0
) -> list[Group]:
    """``samples`` episodes of each task, all at once.

    ``first`` is the first task's number: what is played at the same time has numbers of its own.
    """
    player.engine.admit(len(tasks) * samples)
    name = f"{player.environment.name}: evaluation on {len(tasks)} tasks"
    with waiting(name, owner="engine and rewards"):
        return list(
            await asyncio.gather(
                *(
                    # as of step 0: it goes before rollouts that queue, for the loop waits for it
                    player.group(task, seed=seed, where=(0, index), size=samples)
                    for index, task in enumerate(tasks, start=first)
                )
            )
        )


def summarise(groups: Sequence[Group], samples: int) -> EvalResult:
    """Numbers over groups of equal size. Raises ValueError when nothing could be judged."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    outcomes = Counter(str(rollout.score.outcome) for rollout in rollouts)
    values = [rollout.score.value for rollout in rollouts if rollout.score.value is not None]
    if not values:
        detail = rollouts[0].score.detail if rollouts else "no tasks"
        raise ValueError(f"no sample of the evaluation could be judged; the first says: {detail}")
    correct = [
        (sum(r.score.outcome is Outcome.CORRECT for r in judged), len(judged))
        for group in groups
        if (judged := [r for r in group.rollouts if r.score.judged])
    ]
    accuracy = sum(c / n for c, n in correct) / len(correct)
    low, high = wilson(accuracy, len(correct))
    ks = sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
    return EvalResult(
        n_tasks=len(groups),
        samples_per_task=samples,
        mean_reward=math.fsum(values) / len(values),
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        pass_at_k={
            k: sum(pass_at_k(n, c, k) for c, n in enough) / len(enough)
            for k in ks
            if (enough := [(c, n) for c, n in correct if n >= k])
        },
        mean_length=sum(r.n_completion_tokens for r in rollouts) / len(rollouts),
        outcomes=dict(outcomes),
    )


def read_result(record: Mapping[str, Any]) -> EvalResult:
    """An evaluation as metrics.jsonl keeps it; JSON made strings of the keys of pass@k."""
    known = {k: v for k, v in record.items() if k in EvalResult.__dataclass_fields__}
    return EvalResult(**known | {"pass_at_k": {int(k): v for k, v in record["pass_at_k"].items()}})


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples drawn from n, c of them correct, is correct."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share over n independent trials (Wilson 1927)."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
