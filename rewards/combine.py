"""Decides what several rewards on one sample add up to.

    value    = sum of weight * value over the parts
    outcome  = the first part's: it is the one that says right or wrong; the others shape
    parts    = every part's own value under its name (``name/part`` for the parts of a part)

A part that could not be judged leaves the whole unjudged (ERROR before TIMEOUT), because a sum
with a term missing would compare unlike things within a group. The parts that could be judged are
kept for the record.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rewards.calling import Case, apply
from rewards.errors import UsageError
from rewards.registry import Reward, load, name_of, required_columns
from rewards.score import Outcome, Score


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a combination."""

    name: str
    reward: Reward
    weight: float


class Combined:
    """Several rewards as one; made by ``combine``, used like any reward."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.name = "+".join(part.name for part in parts)
        self.required_columns = frozenset().union(*(required_columns(p.reward) for p in parts))

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """Judge the parts side by side, each with the whole deadline, and add them up."""
        scores = await asyncio.gather(
            *(apply(part.reward, case, timeout_s=timeout_s) for part in self.parts)
        )
        return _sum(self.parts, scores)

    async def __call__(
        self, prompt: str, completion: str, answer: object = None, **columns: object
    ) -> Score:
        messages = columns.pop("messages", ())
        case = Case(prompt, completion, answer, messages, columns)  # type: ignore[arg-type]
        return await self.judge_case(case, 60.0)


def combine(
    rewards: Mapping[str | Reward, float] | Iterable[str | Reward],
) -> Combined:
    """One reward out of several: ``{name or function: weight}``, or a list with weight 1 each.

    The order matters: the first one decides the outcome. Raises UsageError when there is none, a
    weight is not a finite number, or two would carry the same name.
    """
    weighted = rewards.items() if isinstance(rewards, Mapping) else [(r, 1.0) for r in rewards]
    parts: list[Part] = []
    for reward, weight in weighted:
        found = load(reward) if isinstance(reward, str) else reward
        name = reward if isinstance(reward, str) else name_of(reward)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not math.isfinite(weight)
        ):
            raise UsageError(
                f"the weight of reward {name!r} must be a finite number, got {weight!r}"
            )
        if any(part.name == name for part in parts):
            raise UsageError(f"two rewards are named {name!r}: register one under another name")
        parts.append(Part(name, found, float(weight)))
    if not parts:
        raise UsageError("combine needs at least one reward")
    return Combined(tuple(parts))


def _sum(parts: tuple[Part, ...], scores: list[Score]) -> Score:
    kept: dict[str, float] = {}
    for part, score in zip(parts, scores, strict=True):
        if score.value is not None:
            kept[part.name] = score.value
        kept |= {f"{part.name}/{name}": value for name, value in score.parts.items()}
    pairs = list(zip(parts, scores, strict=True))
    detail = "\n".join(f"{part.name}: {score.detail}" for part, score in pairs if score.detail)
    unjudged = {score.outcome for score in scores if score.value is None}
    if unjudged:
        outcome = Outcome.ERROR if Outcome.ERROR in unjudged else Outcome.TIMEOUT
        return Score(None, outcome, kept, detail)
    value = sum(part.weight * (score.value or 0.0) for part, score in pairs)
    if not math.isfinite(value):
        return Score(None, Outcome.ERROR, kept, f"the weighted sum is {value}")
    return Score(value, scores[0].outcome, kept, detail)
