"""Decides what a failure inside ``rewards.model`` becomes: no score, never a score of 0."""

from __future__ import annotations

from rewards.score import Outcome, Score


class Unjudged(Exception):
    """There is no score, for a reason that is not the answer's; ``outcome`` is ERROR or TIMEOUT."""

    def __init__(self, detail: str, outcome: Outcome = Outcome.ERROR) -> None:
        super().__init__(detail)
        self.outcome = outcome


def no_score(error: Exception, name: str) -> Score:
    """A Score without a value, for Unjudged and whatever else a tokenizer or device raised."""
    known = isinstance(error, Unjudged)
    outcome = error.outcome if isinstance(error, Unjudged) else Outcome.ERROR
    why = str(error) if known else repr(error)
    return Score(None, outcome, detail=f"reward model {name!r}: {why:.2000}")
