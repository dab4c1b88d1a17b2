"""What a reward says: a value, and whether the answer could be judged at all.

"Wrong", "could not be parsed", "the verifier timed out" and "the reward raised" are four different
outcomes. Only the first two are the model's doing; the last two carry ``value=None`` so that the
sample is masked out of the advantage instead of being punished for our failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"  # judged: no final answer could be found; a value, often 0
    TIMEOUT = "timeout"  # not judged: value is None
    ERROR = "error"  # not judged: value is None


@dataclass(frozen=True, slots=True)
class Score:
    """One judgement. ``value`` is None exactly when the sample could not be judged.

    Raises ValueError when the value is not finite, or does not fit the outcome.
    """

    value: float | None
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""

    def __post_init__(self) -> None:
        judged = self.outcome not in (Outcome.TIMEOUT, Outcome.ERROR)
        if judged and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(
                f"a score with outcome {self.outcome} needs a finite value, got {self.value}"
            )
        if not judged and self.value is not None:
            raise ValueError(
                f"a score with outcome {self.outcome} must have value None, got {self.value}"
            )

    @property
    def judged(self) -> bool:
        return self.value is not None
