"""The knowledge boundary: answers where a model knows a fact, refusals where it does not.

    document -> questions with a quote -> each asked K times, without the document -> share right
    known (>= ``known``)      its own right answer
    unknown (<= ``unknown``)  a refusal
    between                   dropped: neither would be true

Training on it makes a model say that it does not know, instead of inventing (Llama 3,
arXiv:2407.21783, section 4.3.6; R-Tuning, arXiv:2311.09677). Who answers is the model that will be
trained; whether an answer is right is judged against the document's by ``grader``, another model or
the same.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.documents import QUESTIONS, left_out, read_questions, ungrounded
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

GENERATOR = "boundary"
REFUSALS = (
    "I don't know.",
    "I'm not sure about that, and I would rather not guess.",
    "I don't have reliable knowledge of that.",
)
_GRADE = """Question: {question}
Right answer: {reference}
Answer to grade: {answer}

Does the answer to grade say the same as the right answer on what is asked? Write one word: yes, no,
or unsure where the answer says that it does not know."""
_VERDICT = re.compile(r"\W*(yes|no|unsure)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary(Writing):
    """How knowledge is probed. Raises UsageError for what cannot work."""

    per_document: int = 3  # questions
    tries: int = 8  # answers to each question
    known: float = 0.75  # share right from which the model knows it
    unknown: float = 0.0  # share right up to which it does not
    refusals: Sequence[str] = REFUSALS  # one is drawn by seed
    grader: str = ""  # model that writes and grades; "" is ``model``
    max_chars: int = 12_000

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(per_document=self.per_document, tries=self.tries, max_chars=self.max_chars)
        if not 0 <= self.unknown < self.known <= 1:
            raise UsageError(
                f"0 <= unknown < known <= 1, got unknown {self.unknown!r} and known {self.known!r}"
            )
        if isinstance(self.refusals, str) or not self.refusals:
            raise UsageError("refusals is a list of texts, and not empty")
        if self.tries > 1 and self.temperature == 0:
            raise UsageError("several tries at temperature 0 are all the same")


def knowledge_boundary(documents: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Find what ``model`` does not know of documents, and write refusals there and answers else.

    ``documents`` are texts, rows with ``text``, or a file of rows. ``settings`` are those of
    ``Boundary`` and ``Common``. Returns ``messages`` with ``knows`` (the share of right answers),
    ``known`` and the ``reference``. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Boundary)
    chosen = Boundary(**rest)
    rows = source_rows(documents, "text")
    content = [str(row["text"]) for row in rows]
    plan = rows_plan(GENERATOR, _Boundary, chosen, common.seed, documents=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Tried:
    """An answer without the document, and whether it is right; None where the grade is none."""

    reply: Reply
    verdict: str | None


@dataclass(frozen=True, slots=True)
class _Boundary:
    """The generator: an item is a document."""

    settings: Boundary
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        text = str(item.value["text"])
        if len(text) > self.settings.max_chars:
            return [left_out(GENERATOR, item.value, text)]
        asked = QUESTIONS.format(n=self.settings.per_document, text=text)
        request = self._graders(self.settings.request(self.seed, item.key))
        reply = await ask(user(asked), **request)
        made_by = provenance(GENERATOR, source_of(item.value, text), reply, request)
        found = read_questions(said(reply))[: self.settings.per_document]
        if not found:
            reason = flaw(reply) or "no question in the reply"
            return [Record({"messages": user(said(reply))}, made_by, dropped=reason)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(item, ask, one, i)) for i, one in enumerate(found)]
        return [task.result() for task in tasks]

    async def _one(self, item: Item, ask: Ask, one: Mapping[str, str], number: int) -> Record:
        text = str(item.value["text"])
        source, seeds = source_of(item.value, text), (self.seed, item.key, number)
        request = self.settings.request(*seeds)
        extra: dict[str, Any] = {"reference": one["answer"], "knows": None, "known": None}
        problem = ungrounded(one, text)
        if problem:
            made_by = provenance(GENERATOR, source, _NOTHING, request)
            return Record(
                {"messages": user(one["question"])}, made_by, extra=extra, dropped=problem
            )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._try(ask, one, (*seeds, i)))
                for i in range(self.settings.tries)
            ]
        tried = [task.result() for task in tasks]
        graded = [trial for trial in tried if trial.verdict is not None]
        share = sum(one.verdict == "yes" for one in graded) / len(graded) if graded else None
        extra |= {"knows": share}
        reply, answer, problem = tried[0].reply, "", "between known and unknown"
        if share is None:
            problem = "no grade"
        elif share >= self.settings.known:
            reply = next(trial.reply for trial in graded if trial.verdict == "yes")
            answer, problem, extra["known"] = said(reply), "", True
        elif share <= self.settings.unknown:
            answer = random.Random(derived_seed(*seeds, "refusal")).choice(
                list(self.settings.refusals)
            )
            problem, extra["known"] = "", False
        messages = [*user(one["question"]), {"role": "assistant", "content": answer}]
        made_by = provenance(GENERATOR, source, reply, request)
        return Record({"messages": messages}, made_by, extra=extra, dropped=problem)

    async def _try(self, ask: Ask, one: Mapping[str, str], seeds: tuple[Any, ...]) -> _Tried:
        """One answer from memory; what is cut or empty is wrong, a refusal is unsure."""
        reply = await ask(user(one["question"]), **self.settings.request(*seeds))
        if flaw(reply):
            return _Tried(reply, "no")
        asked = _GRADE.format(question=one["question"], reference=one["answer"], answer=said(reply))
        request = self._graders(self.settings.request(*seeds, "grade") | {"temperature": 0.0})
        match = _VERDICT.match(said(await ask(user(asked), **request)))
        return _Tried(reply, match[1].lower() if match else None)

    def _graders(self, request: dict[str, Any]) -> dict[str, Any]:
        return request | {"model": self.settings.grader or self.settings.model}


_NOTHING = Reply(text="", finish_reason="", model="")
