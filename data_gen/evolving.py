"""Evol-Instruct: instructions rewritten into harder or rarer ones, then answered.

    instruction -> rewritten -> rewritten again ...   each generation answered and kept

WizardLM (arXiv:2304.12244): a rewrite goes into depth (one of four ways) or breadth, drawn by seed.
A rewrite that failed is dropped with its reason, and the next generation starts from its parent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError, did_you_mean
from data_gen.pipeline import Ask, Item
from data_gen.records import Record, derived_seed
from data_gen.rouge import rouge_l
from data_gen.running import Common, run
from data_gen.servers import Reply
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

GENERATOR = "evolve"
_DEEPER = """Rewrite the given instruction into a version that is a little harder to answer.
Do it so: {way} Add at most 20 words. Keep any code or table it has. It must stay answerable.
Write the rewritten instruction alone.

Given instruction:
{instruction}"""
_WIDER = """Write a new instruction of the same field as the given one, but on a rarer subject.
It has about the same length and difficulty, and is answerable. Write the new instruction alone.

Given instruction:
{instruction}"""
WAYS = {
    "constraints": "add one more constraint or requirement.",
    "deepen": "ask about the same subject in more depth and breadth.",
    "concrete": "put something more specific in the place of a general concept.",
    "reasoning": "where a few thoughts are enough, ask for reasoning in several steps.",
    "breadth": "",  # another instruction of the field
}
_LEAKED = re.compile(r"\b(?:given|rewritten|new) (?:instruction|prompt)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolving(Writing):
    """How instructions are rewritten. Raises UsageError for what cannot work."""

    generations: int = 3
    ways: Sequence[str] = tuple(WAYS)
    max_words: int = 300  # of an instruction; rewriting tends to swell

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(generations=self.generations, max_words=self.max_words)
        for way in self.ways or ("",):
            if way not in WAYS:
                raise UsageError(f"there is no way {way!r} to rewrite.{did_you_mean(way, WAYS)}")


def evolve(seeds: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Rewrite instructions into harder and rarer ones, and answer each.

    ``seeds`` are texts, rows with ``instruction``, or a file of rows. ``settings`` are those of
    ``Evolving`` and ``Common``. Returns ``messages``; ``generation`` and ``way`` say how a row
    came about. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Evolving)
    chosen = Evolving(**rest)
    rows = source_rows(seeds, "instruction")
    make = _Evolve(chosen, common.seed)
    content = [row["instruction"] for row in rows]
    plan = rows_plan(GENERATOR, make, chosen, common.seed, seeds=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Evolve:
    """The generator: an item is a seed instruction."""

    settings: Evolving
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        parent = str(item.value["instruction"])
        source, records = source_of(item.value, parent), []
        for generation in range(1, self.settings.generations + 1):
            seeds = (self.seed, item.key, generation)
            way = random.Random(derived_seed(*seeds)).choice(list(self.settings.ways))
            extra = {"generation": generation, "way": way}
            request = self.settings.request(*seeds)
            reply = await ask(user(_prompt(way, parent)), **request)
            problem = self._problem(parent, reply)
            if problem:
                made_by = provenance(GENERATOR, source, reply, request)
                columns = {"messages": user(said(reply))}
                records.append(Record(columns, made_by, extra=extra, dropped=problem))
                continue
            parent = said(reply)
            records.append(
                await answered(
                    ask,
                    user(parent),
                    self.settings.request(*seeds, "answer"),
                    name=GENERATOR,
                    source=source,
                    extra=extra,
                )
            )
        return records

    def _problem(self, parent: str, reply: Reply) -> str:
        """Why a rewrite is none, or ""."""
        if flaw(reply):
            return f"rewrite: {flaw(reply)}"
        text = said(reply)
        if _LEAKED.search(text) and not _LEAKED.search(parent):
            return "rewrite speaks of rewriting"
        if len(text.split()) > self.settings.max_words:
            return "rewrite too long"
        return "rewrite like its parent" if rouge_l(parent, text) > 0.95 else ""


def _prompt(way: str, instruction: str) -> str:
    if way == "breadth":
        return _WIDER.format(instruction=instruction)
    return _DEEPER.format(way=WAYS[way], instruction=instruction)
