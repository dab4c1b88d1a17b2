"""Constitutional critique and revision: an answer, what a principle finds wrong, a better answer.

    prompt -> answer -> (critique by a principle -> revision) x rounds -> revised over first

The supervised stage of Constitutional AI (arXiv:2212.08073): the last revision is ``chosen`` and
the first answer ``rejected``; ``prompt`` + ``chosen`` alone is its SFT data. Which principles a
prompt gets is a function of the seed and the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item
from data_gen.records import Record, derived_seed
from data_gen.running import Common, run
from data_gen.servers import Reply
from data_gen.writing import (
    Writing,
    flaw,
    provenance,
    rows_plan,
    said,
    source_of,
    source_rows,
    user,
    whole,
)

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "constitutional"
PRINCIPLES = (
    "The answer must not help anyone to do harm, and says plainly what it will not help with.",
    "The answer must be true: no invented fact, and doubt is said where there is doubt.",
    "The answer must do what was asked, wholly and without matter that was not asked for.",
    "The answer must be polite and without prejudice, and must not lecture.",
)
_CRITIQUE = """Here is a question and an answer to it.

Question:
{question}

Answer:
{answer}

Principle: {principle}
Say specifically where the answer falls short of the principle. If nowhere, write: No change."""
_REVISE = """{critique_request}

Critique:
{critique}

Rewrite the answer so that the critique no longer applies. Write the new answer alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution(Writing):
    """How answers are revised. Raises UsageError for what cannot work."""

    rounds: int = 1
    principles: Sequence[str] = PRINCIPLES

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(rounds=self.rounds)
        if isinstance(self.principles, str) or not self.principles:
            raise UsageError("principles is a list of texts, and not empty")


def constitutional(prompts: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Answer prompts, criticise and revise; the revised answer is preferred to the first.

    ``prompts`` are texts, rows with ``prompt``, or a file of rows. ``settings`` are those of
    ``Constitution`` and ``Common``. Returns ``prompt``, ``chosen``, ``rejected`` with the
    ``critiques`` and ``principles``. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Constitution)
    chosen = Constitution(**rest)
    rows = source_rows(prompts, "prompt")
    if not all(isinstance(row["prompt"], str) for row in rows):
        raise UsageError("a prompt to be revised is a text")
    make = _Constitutional(chosen, common.seed)
    content = [row["prompt"] for row in rows]
    plan = rows_plan(GENERATOR, make, chosen, common.seed, prompts=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Constitutional:
    """The generator: an item is a prompt."""

    settings: Constitution
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        question = str(item.value["prompt"])
        first = await ask(user(question), **self._request(item, "answer"))
        last, critiques, used = first, list[str](), list[str]()
        for number in range(self.settings.rounds):
            if _useless(last):
                break
            draw = random.Random(derived_seed(self.seed, item.key, number))
            principle = draw.choice(list(self.settings.principles))
            asked = _CRITIQUE.format(question=question, answer=said(last), principle=principle)
            critique = await ask(user(asked), **self._request(item, "critique", number))
            if _useless(critique) or said(critique).lower().startswith("no change"):
                continue
            request = _REVISE.format(critique_request=asked, critique=said(critique))
            last = await ask(user(request), **self._request(item, "revision", number))
            critiques.append(said(critique))
            used.append(principle)
        made_by = provenance(
            GENERATOR, source_of(item.value, question), last, self._request(item, "answer")
        )
        columns: Mapping[str, Any] = {
            "prompt": user(question),
            "chosen": [{"role": "assistant", "content": said(last)}],
            "rejected": [{"role": "assistant", "content": said(first)}],
        }
        extra = {"critiques": critiques, "principles": used}
        return [Record(columns, made_by, extra=extra, dropped=_problem(first, last, critiques))]

    def _request(self, item: Item, *about: Any) -> dict[str, Any]:
        return self.settings.request(self.seed, item.key, *about)


def _useless(reply: Reply) -> bool:
    """Cut or empty; a refusal is an answer here, which may be what is revised, or the revision."""
    return flaw(reply) in ("cut off", "empty")


def _problem(first: Reply, last: Reply, critiques: Sequence[str]) -> str:
    if _useless(first):
        return f"answer: {flaw(first)}"
    if not critiques:
        return "nothing to revise"
    if _useless(last):
        return f"revision: {flaw(last)}"
    return "revision changes nothing" if said(first) == said(last) else ""
