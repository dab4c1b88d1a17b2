"""The knowledge boundary: answers where a model knows a fact, refusals where it does not.

    document -> questions with a quote -> each asked K times, without the document -> share right
    known (>= ``known``)      its own right answer
    unknown (<= ``unknown``)  a refusal; with ``fill``, an episode in which a tool finds it
    between                   dropped: neither would be true

Training on it makes a model say that it does not know, instead of inventing (Llama 3,
arXiv:2407.21783, section 4.3.6; R-Tuning, arXiv:2311.09677). Who answers is the model that will be
trained; whether an answer is right is judged against the document's by ``grader``, another model or
the same.

``fill`` is an environment with tools (search over the documents, an interpreter): an unknown
question is asked in it, and the episode is kept when its answer is right and a tool was used. All
rows then name the tools, so that what is learnt is when to use them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs
from data_gen.documents import QUESTIONS, left_out, read_questions, ungrounded
from data_gen.episodes import Rules, play
from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record, derived_seed
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
from envs import Environment, Task

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
    turns: int = 6  # of an episode with tools

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(per_document=self.per_document, tries=self.tries, max_chars=self.max_chars)
        whole(turns=self.turns)
        if not 0 <= self.unknown < self.known <= 1:
            raise UsageError(
                f"0 <= unknown < known <= 1, got unknown {self.unknown!r} and known {self.known!r}"
            )
        if isinstance(self.refusals, str) or not self.refusals:
            raise UsageError("refusals is a list of texts, and not empty")
        if self.tries > 1 and self.temperature == 0:
            raise UsageError("several tries at temperature 0 are all the same")


def knowledge_boundary(
    documents: Any, servers: Any, out: str | Path, *, fill: Any = None, **settings: Any
) -> Dataset:
    """Find what ``model`` does not know of documents, and write refusals there and answers else.

    ``documents`` are texts, rows with ``text``, or a file of rows. ``fill`` is an environment, its
    name, or the arguments of ``envs.load`` (``{"name": ...}``); its tasks are not used, nor is how
    it judges. ``settings`` are those of ``Boundary`` and ``Common``. Returns ``messages`` with
    ``knows`` (the share of right answers), ``known``, the ``reference`` and, with ``fill``, the
    ``tools`` as JSON text. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Boundary)
    chosen = Boundary(**rest)
    rows = source_rows(documents, "text")
    content = [str(row["text"]) for row in rows]
    world, tools = (None, "") if fill is None else _world(fill)
    rules = None if world is None else Rules(world, max_turns=chosen.turns)
    make = _Boundary(chosen, common.seed, rules, tools)
    plan = rows_plan(GENERATOR, make, chosen, common.seed, documents=(rows, content))
    if world is not None:
        plan = replace(plan, job={**plan.job, "fill": [world.name, tools]})
    return run(plan, servers, out, common)


def _world(fill: Any) -> tuple[Environment, str]:
    """The environment that fills gaps, and its tools as JSON text."""
    if isinstance(fill, str | Mapping):
        fill = envs.load(**({"name": fill} if isinstance(fill, str) else fill))
    tools = getattr(fill.make(), "tools", None)
    if tools is None or inspect.iscoroutinefunction(tools):
        raise UsageError(f"fill: the environment {fill.name!r} has no tools that are known at once")
    return fill, json.dumps([one.as_openai() for one in tools()])


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
    rules: Rules | None  # of the episodes that fill a gap
    tools: str = ""  # of their environment, as JSON text

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
        question = user(one["question"])
        tools = {} if self.rules is None else {"tools": self.tools}
        if share is not None and share >= self.settings.known:
            reply = next(trial.reply for trial in graded if trial.verdict == "yes")
            answer, problem, extra["known"] = said(reply), "", True
        elif share is not None and share <= self.settings.unknown:
            extra["known"] = False
            if self.rules is not None:
                return await self._filled(ask, one, source, seeds, extra)
            drawn = random.Random(derived_seed(*seeds, "refusal"))
            reply, answer = tried[0].reply, drawn.choice(list(self.settings.refusals))
            problem = ""
        else:
            reply, answer = tried[0].reply, ""
            problem = "no grade" if share is None else "between known and unknown"
        columns = {"messages": [*question, {"role": "assistant", "content": answer}], **tools}
        made_by = provenance(GENERATOR, source, reply, request)
        return Record(columns, made_by, extra=extra, dropped=problem)

    async def _filled(
        self,
        ask: Ask,
        one: Mapping[str, str],
        source: str,
        seeds: tuple[Any, ...],
        extra: dict[str, Any],
    ) -> Record:
        """An episode with tools on a question that the model can't answer by itself."""
        assert self.rules is not None
        request = self.settings.request(*seeds, "fill")
        task = Task(f"{source}-{seeds[-1]}", tuple(user(one["question"])), one["answer"])
        played = await play(self.rules, task, ask, request)
        last = played.messages[-1] if played.messages else {}
        answer = str(last.get("content") or "") if last.get("role") == "assistant" else ""
        used = any(message["role"] == "tool" for message in played.messages)
        if played.end == "length" or last.get("tool_calls") or not answer.strip():
            problem = f"fill: no answer ({played.end})"
        elif not used:
            problem = "fill: no tool was used"
        else:
            verdict = await self._grade(ask, one, answer, (*seeds, "fill"))
            problem = "" if verdict == "yes" else "fill: not right"
        made_by = Provenance(
            GENERATOR,
            source=source,
            model=request["model"],
            temperature=request["temperature"],
            seed=request["seed"],
            n_tokens=played.n_tokens,
            end=played.end,
        )
        columns = {"messages": [dict(message) for message in played.messages], "tools": self.tools}
        return Record(columns, made_by, extra=extra, dropped=problem)

    async def _try(self, ask: Ask, one: Mapping[str, str], seeds: tuple[Any, ...]) -> _Tried:
        """One answer from memory; what is cut or empty is wrong, a refusal is unsure."""
        reply = await ask(user(one["question"]), **self.settings.request(*seeds))
        if flaw(reply):
            return _Tried(reply, "no")
        return _Tried(reply, await self._grade(ask, one, said(reply), seeds))

    async def _grade(
        self, ask: Ask, one: Mapping[str, str], answer: str, seeds: tuple[Any, ...]
    ) -> str | None:
        """yes, no or unsure; None for a grade that is none."""
        asked = _GRADE.format(question=one["question"], reference=one["answer"], answer=answer)
        request = self._graders(self.settings.request(*seeds, "grade") | {"temperature": 0.0})
        match = _VERDICT.match(said(await ask(user(asked), **request)))
        return match[1].lower() if match else None

    def _graders(self, request: dict[str, Any]) -> dict[str, Any]:
        return request | {"model": self.settings.grader or self.settings.model}


_NOTHING = Reply(text="", finish_reason="", model="")
