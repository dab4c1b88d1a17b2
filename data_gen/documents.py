"""SFT data from documents: questions that a document answers, and what it could be the answer to.

    questions       document -> question, answer and a quote -> those whose quote is in the document
    back_translate  document -> the instruction that it answers -> graded -> (instruction, document)

``back_translate`` is instruction back-translation (arXiv:2308.06259): the answer is the human's
text, and only the instruction is written. Its self-curation step, a grade from 1 to 5 by the model,
drops what is below ``at_least``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record
from data_gen.running import Common, run
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

QUESTIONS = """Write {n} questions that the document answers, for a reader who does not have it:
each names what it is about and never says "the document". For each, write three lines:
Question: the question
Answer: a full answer, from the document alone
Quote: the words of the document that the answer rests on, copied exactly

Document:
{text}"""
_MARK = r"^[^\w\n]*(?:\d+[.)])?[^\w\n]*"  # "1. **" before a name
_TRIPLE = re.compile(
    rf"{_MARK}Question\W*:(?P<question>.+?){_MARK}Answer\W*:(?P<answer>.+?)"
    rf"{_MARK}Quote\W*:(?P<quote>.+?)(?={_MARK}Question\W*:|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_LEANS = re.compile(
    r"\b(?:the|this|given) (?:document|text|passage|article|author)\b", re.IGNORECASE
)
_INSTRUCTION = """The text below is a good answer to an instruction that a person gave. Write that
instruction, so complete that the text is what one would expect. Write the instruction alone.

Text:
{text}"""
_GRADE = """Here are an instruction and an answer. Grade from 1 to 5 how well the answer does what
the instruction asks: 1 is off the subject, 3 is an answer with gaps or with matter that does not
belong, 5 is the full and focused answer of an expert. Write one line: Score: the number

Instruction:
{instruction}

Answer:
{text}"""
_SCORE = re.compile(r"score\W*([1-5])(?![\d.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FromDocuments(Writing):
    """How documents are asked about. Raises UsageError for what cannot work."""

    per_document: int = 3  # questions
    at_least: int = 4  # of 5, of a back-translated pair; 0 asks for no grade
    max_chars: int = 12_000  # a longer document is left out, and counted

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(per_document=self.per_document, max_chars=self.max_chars)
        if self.at_least not in range(6):
            raise UsageError(f"at_least is a grade from 0 to 5, got {self.at_least!r}")


def questions(documents: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Questions and answers from documents, each with its quote found in the document.

    ``documents`` are texts, rows with ``text``, or a file of rows. ``settings`` are those of
    ``FromDocuments`` and ``Common``. Returns ``messages`` with ``quote``. Raises UsageError,
    GenerationError.
    """
    return _over(documents, servers, out, "questions", settings)


def back_translate(documents: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """The instruction that each document answers, with the document as the answer.

    ``documents`` and ``settings`` as for ``questions``. Returns ``messages`` with ``grade``.
    Raises UsageError, GenerationError.
    """
    return _over(documents, servers, out, "back_translate", settings)


def _over(
    documents: Any, servers: Any, out: str | Path, name: str, settings: Mapping[str, Any]
) -> Dataset:
    common, rest = Common.split(settings, FromDocuments)
    chosen = FromDocuments(**rest)
    rows = source_rows(documents, "text")
    made = _Questions if name == "questions" else _BackTranslate
    make = made(chosen, common.seed)
    content = [str(row["text"]) for row in rows]
    plan = rows_plan(name, make, chosen, common.seed, documents=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Questions:
    """The generator: an item is a document."""

    settings: FromDocuments
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        text = str(item.value["text"])
        if len(text) > self.settings.max_chars:
            return [left_out("questions", item.value, text)]
        asked = QUESTIONS.format(n=self.settings.per_document, text=text)
        request = self.settings.request(self.seed, item.key)
        reply = await ask(user(asked), **request)
        made_by = provenance("questions", source_of(item.value, text), reply, request)
        found = read_questions(said(reply))
        if not found:
            reason = flaw(reply) or "no question in the reply"
            return [Record({"messages": user(said(reply))}, made_by, dropped=reason)]
        return [
            Record(
                {"messages": [*user(one["question"]), _assistant(one["answer"])]},
                replace(made_by, sample=i),
                extra={"quote": one["quote"]},
                dropped=ungrounded(one, text),
            )
            for i, one in enumerate(found[: self.settings.per_document])
        ]


@dataclass(frozen=True, slots=True)
class _BackTranslate:
    """The generator: an item is a document."""

    settings: FromDocuments
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        text = str(item.value["text"])
        if len(text) > self.settings.max_chars:
            return [left_out("back_translate", item.value, text)]
        request = self.settings.request(self.seed, item.key)
        reply = await ask(user(_INSTRUCTION.format(text=text)), **request)
        instruction, problem, grade = said(reply), flaw(reply), None
        if not problem and self.settings.at_least:
            asked = _GRADE.format(instruction=instruction, text=text)
            grading = self.settings.request(self.seed, item.key, "grade") | {"temperature": 0.0}
            grade = read_grade(said(await ask(user(asked), **grading)))
            problem = "no grade" if grade is None else ""
            if grade is not None and grade < self.settings.at_least:
                problem = "grade too low"
        made_by = provenance("back_translate", source_of(item.value, text), reply, request)
        columns = {"messages": [*user(instruction), _assistant(text)]}
        return [Record(columns, made_by, extra={"grade": grade}, dropped=problem)]


def read_questions(text: str) -> list[dict[str, str]]:
    """Question, answer and quote of each block of a reply."""
    found = [match.groupdict() for match in _TRIPLE.finditer(text)]
    return [
        {name: value.strip().strip("*").strip() for name, value in one.items()} for one in found
    ]


def read_grade(text: str) -> int | None:
    """The last ``Score: n`` of a reply, n from 1 to 5."""
    scores = _SCORE.findall(text)
    return int(scores[-1]) if scores else None


def ungrounded(one: Mapping[str, str], text: str) -> str:
    """Why a question is not answered by the document, or ""."""
    quote = " ".join(one["quote"].strip("\"'\u201c\u201d ").split())
    if len(quote) < 10 or quote.lower() not in " ".join(text.split()).lower():
        return "quote not in the document"
    return "question leans on the document" if _LEANS.search(one["question"]) else ""


def left_out(name: str, row: Mapping[str, Any], text: str) -> Record:
    """What a document that is too long becomes."""
    made_by = Provenance(name, source=source_of(row, text))
    return Record({"messages": user(text[:200])}, made_by, dropped="document too long")


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
