"""Decides what several reward models add up to, and keeps how much they disagree.

    mean        the mean of the members' values
    min         the smallest: worst-case optimisation
    mean-std    mean - k * std: an answer is worth less where the members disagree

``min`` and a penalty on disagreement are used against over-optimisation: Coste et al. 2023,
arXiv:2310.02743, sections 3.2 and 3.3; their penalty is k * variance, ours is in the score's own
unit. The members should differ (seed, data, base), and have one scale: fine-tunes of one base, or
``normalise=True``, which gives each statistics of its own. std is that of the population.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.model.reading import Message
from rewards.model.reward import RewardModel, outcome
from rewards.score import Outcome, Score

AGGREGATES = ("mean", "min", "mean-std")


class Ensemble:
    """Several reward models as one reward; ``parts`` has each one's value, and ``std``.

    A member without a score leaves the whole unjudged (ERROR before TIMEOUT). Can it be hacked? By
    whatever all members share, above all the bias to length: models trained on the same preferences
    agree on the same mistakes, and the disagreement does not show it.
    """

    required_columns: frozenset[str] = frozenset()

    def __init__(
        self,
        members: Sequence[RewardModel],
        *,
        aggregate: str = "mean",
        k: float = 1.0,
        threshold: float | None = None,
        name: str = "",
    ) -> None:
        if len(members) < 2:
            raise UsageError(f"an ensemble needs at least two reward models, got {len(members)}")
        if aggregate not in AGGREGATES:
            raise UsageError(f"aggregate = {aggregate!r}.{did_you_mean(aggregate, AGGREGATES)}")
        if not (math.isfinite(k) and k >= 0):
            raise UsageError(f"k = {k!r} must be a number of at least 0")
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            raise UsageError(f"two reward models have the same name: {names}")
        self.members, self.threshold = tuple(members), threshold
        self.name = name or "ensemble"
        self._aggregate, self._k = aggregate, k

    async def __call__(
        self, prompt: str, completion: str, messages: Sequence[Message] = ()
    ) -> Score:
        scores = await asyncio.gather(
            *(member(prompt, completion, messages) for member in self.members)
        )
        parts: dict[str, float] = {}
        for member, score in zip(self.members, scores, strict=True):
            if score.value is not None:
                parts[member.name] = score.value
            parts |= {f"{member.name}/{part}": value for part, value in score.parts.items()}
        detail = "\n".join(
            f"{m.name}: {s.detail}" for m, s in zip(self.members, scores, strict=True) if s.detail
        )
        values = [score.value for score in scores if score.value is not None]
        if len(values) < len(scores):
            failed = {score.outcome for score in scores if score.value is None}
            worst = Outcome.ERROR if Outcome.ERROR in failed else Outcome.TIMEOUT
            return Score(None, worst, parts, detail)
        parts["std"] = statistics.pstdev(values)
        value = self._combined(values, parts["std"])
        return Score(value, outcome(value, self.threshold), parts, detail)

    def state_dict(self) -> dict[str, Any]:
        """The members' statistics by name."""
        return {member.name: member.state_dict() for member in self.members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UsageError when the members are others."""
        if set(state) != {member.name for member in self.members}:
            raise UsageError(f"a state of {sorted(state)}, not of {[m.name for m in self.members]}")
        for member in self.members:
            member.load_state_dict(state[member.name])

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in self.members))

    def _combined(self, values: list[float], std: float) -> float:
        if self._aggregate == "min":
            return min(values)
        mean = statistics.fmean(values)
        return mean - self._k * std if self._aggregate == "mean-std" else mean
