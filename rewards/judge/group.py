"""Decides how rankings become the rewards of a batch: one value per completion of a group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rewards.errors import UsageError
from rewards.judge.failures import Failed
from rewards.judge.judge import Judge, Prompt, check_ranking
from rewards.score import Outcome, Score


class Ranked:
    """A batch reward: completions of the same prompt and answer are ranked against each other.

    The value, in [0, 1], says how an answer stands *within its group*: a group of bad answers has a
    winner too. ``size`` is the number of completions that a group must have: what is called with
    fewer or more, a part of a group, is not judged (None, ERROR), since a rank in it means nothing.
    Costs K (K - 1) verdicts per group of K, or 2 with ``method="list"``. How it can be hacked: as
    any judge can, see ``rewards.judge.judge``.
    """

    def __init__(
        self, judge: Judge, size: int, *, method: str = "pairs", aggregate: str = "copeland"
    ) -> None:
        check_ranking(method, aggregate)
        if type(size) is not int or size < 2:
            raise UsageError(f"a ranking needs groups of two or more completions, got {size!r}")
        self.size = size
        self.judge, self.method, self.aggregate = judge, method, aggregate
        self.name = f"ranked-{judge.name}"
        self.required_columns = judge.required_columns

    async def __call__(
        self,
        prompt: Sequence[str],
        completion: Sequence[str],
        answer: Sequence[object] | None = None,
        **columns: object,
    ) -> list[Score]:
        """One score per completion, in the order given."""
        answers = answer if answer is not None else [None] * len(prompt)
        talks = columns.get("messages")
        talks = talks if isinstance(talks, list | tuple) else [None] * len(prompt)
        groups: dict[str, list[int]] = {}
        asked = [self.judge.shown_prompt(*one) for one in zip(prompt, talks, strict=True)]
        for i, (one, gold, _) in enumerate(zip(asked, answers, completion, strict=True)):
            groups.setdefault(repr((one, gold)), []).append(i)
        found = await asyncio.gather(
            *(
                self._group(asked[of[0]], [completion[i] for i in of], answers[of[0]])
                for of in groups.values()
            )
        )
        scores: dict[int, Score] = {}
        for members, of_group in zip(groups.values(), found, strict=True):
            scores |= dict(zip(members, of_group, strict=True))
        return [scores[i] for i in range(len(prompt))]

    async def _group(self, prompt: Prompt, completions: list[str], answer: object) -> list[Score]:
        name = self.judge.name
        if len(completions) != self.size:
            why = (
                f"{len(completions)} completions of a prompt came together, not {self.size} (size)"
            )
            return [Failed(Outcome.ERROR, why).score(name) for _ in completions]
        try:
            ranking = await self.judge.rank(
                prompt, completions, answer, method=self.method, aggregate=self.aggregate
            )
        except UsageError as error:  # a row without a reference spoils its own group only
            return [Failed(Outcome.ERROR, str(error)).score(name) for _ in completions]
        failed = ranking.failed or Failed(Outcome.ERROR, "it was not compared")
        parts = {"flipped_pairs": float(ranking.flipped)}
        scores = []
        for text, value in zip(completions, ranking.values, strict=True):
            if not self.judge.shown_answer(text).text:
                scores.append(Score(0.0, Outcome.UNPARSEABLE, parts))
            elif value is None:
                scores.append(failed.score(name, parts))
            else:
                outcome = Outcome.CORRECT if value >= 1.0 else Outcome.WRONG
                scores.append(Score(value, outcome, parts))
        return scores
