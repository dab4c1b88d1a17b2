"""Decides what several rewards on one sample add up to.

    value    = sum of weight * value over the parts
    outcome  = the first part's: it is the one that says right or wrong; the others shape
    parts    = every part's own value under its name (``name/part`` for the parts of a part)

A part that could not be judged leaves the whole unjudged (ERROR before TIMEOUT), because a sum
with a term missing would compare unlike things within a group. The parts that could be judged are
kept for the record.

Gates come first, one after the other: "the format must hold, or the rest is not counted". A gate
is passed when its outcome is CORRECT. The first that is not ends the judgement: the value is
``floor``, the outcome the gate's own, and what stands behind it is never called. A gate that could
not be judged leaves the whole unjudged. Gates are kept among the parts and add nothing to the sum.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.calling import Case, CaseReward, apply
from rewards.errors import UsageError
from rewards.registry import Reward, check_row, load, name_of, required_columns
from rewards.score import Outcome, Score


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a combination, or one of its gates."""

    name: str
    reward: Reward
    weight: float = 0.0


class Combined(CaseReward):
    """Several rewards as one; made by ``combine``, used like any reward."""

    def __init__(
        self, parts: tuple[Part, ...], gates: tuple[Part, ...] = (), floor: float = 0.0
    ) -> None:
        self.parts = parts
        self.gates = gates
        self.floor = floor
        self.name = "+".join(part.name for part in (*gates, *parts))
        everything = [part.reward for part in (*gates, *parts)]
        self.required_columns = frozenset().union(*map(required_columns, everything))

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """Judge the gates in order, then the parts side by side, each with the whole deadline."""
        passed: list[Score] = []
        for gate in self.gates:
            score = await apply(gate.reward, case, timeout_s=timeout_s)
            passed.append(score)
            if score.outcome is not Outcome.CORRECT:
                return self._stopped(gate, passed)
        scores = await asyncio.gather(
            *(apply(part.reward, case, timeout_s=timeout_s) for part in self.parts)
        )
        return _sum((*self.parts, *self.gates), [*scores, *passed])

    def check_row(self, fields: Mapping[str, Any]) -> None:
        """Raises UsageError when a part or gate could never judge such a row."""
        for part in (*self.gates, *self.parts):
            check_row(part.reward, fields)

    def _stopped(self, gate: Part, scores: list[Score]) -> Score:
        """The judgement when ``gate`` was not passed; ``scores`` are those of the gates so far."""
        last = scores[-1]
        kept, detail = _record(self.gates[: len(scores)], scores)
        if not last.judged:
            return Score(None, last.outcome, kept, detail)
        detail = "\n".join(filter(None, [f"gate {gate.name!r} was not passed", detail]))
        return Score(self.floor, last.outcome, kept, detail)


Weighted = Mapping[str | Reward, "float | tuple[str | Reward, float]"] | Iterable[str | Reward]


def combine(
    rewards: Weighted,
    *,
    gates: Mapping[str, str | Reward] | Iterable[str | Reward] = (),
    floor: float = 0.0,
) -> Combined:
    """One reward out of several: ``{name or function: weight}``, or a list with weight 1 each.

    ``{"short": (reward, weight)}`` gives a part a name of its own, so that one function can be
    there twice; ``gates`` may be a list or ``{name: reward}``. The order matters: the first part
    decides the outcome. Raises UsageError when there is none, a weight or the floor is not a finite
    number, or two would carry the same name.
    """
    parts = [_part(key, entry) for key, entry in _named(rewards, lambda one: 1.0)]
    if not parts:
        raise UsageError("combine needs at least one reward")
    barred = [_part(key, (one, 0.0)) for key, one in _named(gates, lambda one: one)]
    seen: set[str] = set()
    for part in (*barred, *parts):
        if part.name in seen:
            raise UsageError(
                f"two rewards are named {part.name!r}: give one another name, "
                f'as in combine({{"name": (reward, weight)}})'
            )
        seen.add(part.name)
    return Combined(tuple(parts), tuple(barred), _finite(floor, "the floor"))


def _named(given: Any, entry: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """The items of a mapping; of a list each reward with its ``entry``."""
    if isinstance(given, Mapping):
        return list(given.items())
    if isinstance(given, str) or callable(given):
        raise UsageError(f"a list or mapping of rewards is needed, got {given!r}")
    return [(one, entry(one)) for one in given]


def _part(key: Any, entry: Any) -> Part:
    """A part named ``key``, or after the reward that ``key`` is."""
    reward, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (key, entry)
    found = load(reward) if isinstance(reward, str) else reward
    required_columns(found)  # what is no reward is told before its weight
    name = key if isinstance(key, str) else name_of(found)
    return Part(name, found, _finite(weight, f"the weight of reward {name!r}"))


def _finite(number: Any, what: str) -> float:
    wrong = isinstance(number, bool) or not isinstance(number, int | float)
    if wrong or not math.isfinite(number):
        raise UsageError(f"{what} must be a finite number, got {number!r}")
    return float(number)


def _record(parts: Sequence[Part], scores: Sequence[Score]) -> tuple[dict[str, float], str]:
    """Every part's value under its name, and what the parts had to say."""
    kept: dict[str, float] = {}
    pairs = list(zip(parts, scores, strict=True))
    for part, score in pairs:
        if score.value is not None:
            kept[part.name] = score.value
        kept |= {f"{part.name}/{name}": value for name, value in score.parts.items()}
    return kept, "\n".join(f"{part.name}: {score.detail}" for part, score in pairs if score.detail)


def _sum(parts: Sequence[Part], scores: Sequence[Score]) -> Score:
    kept, detail = _record(parts, scores)
    unjudged = {score.outcome for score in scores if score.value is None}
    if unjudged:
        outcome = Outcome.ERROR if Outcome.ERROR in unjudged else Outcome.TIMEOUT
        return Score(None, outcome, kept, detail)
    value = sum(
        part.weight * (score.value or 0.0) for part, score in zip(parts, scores, strict=True)
    )
    if not math.isfinite(value):
        return Score(None, Outcome.ERROR, kept, f"the weighted sum is {value}")
    return Score(value, scores[0].outcome, kept, detail)
