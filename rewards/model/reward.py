"""Decides what Score a model's raw number becomes.

A raw score is neither right nor wrong: it has no zero that means anything, only differences between
answers to one prompt do. The outcome is CORRECT when ``threshold`` is given and the raw score is
above it, else WRONG, in the sense of "not shown to be right": without a threshold a reward model
never adds to an accuracy. Combined with a verifier, put the verifier first, and its outcome counts.

What could not be scored (too long, the template refuses, the server does not answer, NaN) has value
None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.errors import UsageError
from rewards.model.failures import no_score
from rewards.model.normalising import RunningStatistics
from rewards.model.reading import Message, conversation
from rewards.score import Outcome, Score


@dataclass(frozen=True, slots=True)
class Raw:
    """A raw logit, and what was done to the input on the way."""

    value: float
    cut: int = 0  # tokens dropped on the left
    defused: int = 0  # special tokens that stood in a message as text


class Scorer(Protocol):
    """Where raw scores come from: a checkpoint in this process, or a server."""

    async def raw(self, messages: Sequence[Message]) -> Raw:
        """The score of a conversation that ends in the answer. Raises Unjudged."""

    async def close(self) -> None:
        """Let go of connections of this event loop."""


class RewardModel:
    """A learned score of the last answer; used like any reward, from any event loop.

    ``counts`` says how many were ``scored``, ``unjudged``, ``truncated`` and had special tokens
    ``defused``. Can it be hacked? Yes, and optimised against long enough it always is: longer
    answers, lists and headings, confident tone, flattery, a repeated phrase that the head happens
    to like, an answer in the language of its training data. Watch the length and a held-out judge,
    keep the KL to the start small, combine it with a length or repetition penalty, or use several
    models and their disagreement (``rewards.model.Ensemble``).
    """

    required_columns: frozenset[str] = frozenset()

    def __init__(
        self, name: str, scorer: Scorer, *, threshold: float | None = None, normalise: bool = False
    ) -> None:
        self.name, self.threshold = name, threshold
        self.statistics = RunningStatistics() if normalise else None
        self.counts: Counter[str] = Counter()
        self._scorer = scorer

    async def __call__(
        self, prompt: str, completion: str, messages: Sequence[Message] = ()
    ) -> Score:
        try:
            raw = await self._scorer.raw(conversation(prompt, completion, messages))
        except Exception as error:  # noqa: BLE001  boundary: model text meets tokenizer and device
            self.counts["unjudged"] += 1
            return no_score(error, self.name)
        self.counts.update(scored=1, truncated=raw.cut > 0, defused=raw.defused > 0)
        parts: dict[str, float] = {}
        value = raw.value
        if self.statistics is not None:
            self.statistics.collect(raw.value)
            value, parts["raw"] = self.statistics.normalised(raw.value), raw.value
        notes = []
        if raw.cut:
            notes.append(f"the first {raw.cut} tokens were cut off")
        if raw.defused:
            notes.append(f"{raw.defused} special tokens in the text were taken as plain text")
        return Score(value, outcome(raw.value, self.threshold), parts, "; ".join(notes))

    def state_dict(self) -> dict[str, Any]:
        """The statistics; empty without ``normalise``."""
        return self.statistics.state_dict() if self.statistics is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UsageError for a state of something else."""
        if self.statistics is not None:
            self.statistics.load_state_dict(state)
        elif state:
            raise UsageError(f"reward model {self.name!r} was loaded without normalise=True")

    async def close(self) -> None:
        """Let go of the connections of this event loop; a checkpoint has none."""
        await self._scorer.close()


def outcome(raw: float, threshold: float | None) -> Outcome:
    """The module docstring has the rule."""
    return Outcome.CORRECT if threshold is not None and raw > threshold else Outcome.WRONG
