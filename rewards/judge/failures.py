"""The one exception inside ``rewards.judge``: no verdict, for a reason that is not the answer's."""

from __future__ import annotations

from rewards.score import Outcome, Score


class Failed(Exception):
    """Becomes a Score without a value: ``outcome`` is ERROR or TIMEOUT."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail

    def score(self, name: str, parts: dict[str, float] | None = None) -> Score:
        return Score(None, self.outcome, parts or {}, f"judge {name!r}: {self.detail}")
