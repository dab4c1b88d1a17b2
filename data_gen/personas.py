"""Personas: who would read or write a text, then what such a person would ask a model.

Persona Hub (arXiv:2406.20094): a text becomes a persona, which makes the questions as diverse as
the texts. Rows that have a ``persona`` are used as they are.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.pipeline import Ask, Item
from data_gen.records import Record
from data_gen.running import Common, run
from data_gen.writing import (
    Writing,
    answered,
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

GENERATOR = "personas"
_WHO = """Who is likely to write, read or care about the text below? Describe one such person in one
or two specific sentences: work, field, what they care about. Write the description alone.

Text:
{text}"""
_WHAT = """A person: {persona}

Write {kind} that this person would send to an AI assistant, in their own words and with all that is
needed to answer it. Do not describe the person. Write the message alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Personas(Writing):
    """What is written for each persona. Raises UsageError for what cannot work."""

    per_persona: int = 2
    kind: str = "a request"  # "a hard mathematics problem", "a question about a tool", ...

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(per_persona=self.per_persona)


def personas(texts: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Requests of the persons behind texts, with answers.

    ``texts`` are texts, rows with ``text`` or with ``persona``, or a file of rows. ``settings`` are
    those of ``Personas`` and ``Common``. Returns ``messages`` with ``persona``. Raises UsageError,
    GenerationError.
    """
    common, rest = Common.split(settings, Personas)
    chosen = Personas(**rest)
    rows = source_rows(texts, "text", "persona")
    make = _Personas(chosen, common.seed)
    content = [str(row.get("persona") or row["text"]) for row in rows]
    plan = rows_plan(GENERATOR, make, chosen, common.seed, texts=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Personas:
    """The generator: an item is a text or a persona."""

    settings: Personas
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        persona = str(item.value.get("persona") or "")
        if not persona:
            text = str(item.value["text"])
            request = self.settings.request(self.seed, item.key)
            reply = await ask(user(_WHO.format(text=text)), **request)
            persona = said(reply)
            if flaw(reply):
                made_by = provenance(GENERATOR, source_of(item.value, text), reply, request)
                columns = {"messages": user(persona)}
                return [Record(columns, made_by, dropped=f"persona: {flaw(reply)}")]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._one(item, ask, persona, i))
                for i in range(self.settings.per_persona)
            ]
        return [task.result() for task in tasks]

    async def _one(self, item: Item, ask: Ask, persona: str, number: int) -> Record:
        source, extra = source_of(item.value, persona), {"persona": persona}
        request = self.settings.request(self.seed, item.key, number)
        asked = _WHAT.format(persona=persona, kind=self.settings.kind)
        reply = await ask(user(asked), **request)
        if flaw(reply):
            made_by = provenance(GENERATOR, source, reply, request)
            columns, reason = {"messages": user(said(reply))}, f"request: {flaw(reply)}"
            return Record(columns, made_by, extra=extra, dropped=reason)
        answer = self.settings.request(self.seed, item.key, number, "answer")
        return await answered(
            ask, user(said(reply)), answer, name=GENERATOR, source=source, extra=extra
        )
