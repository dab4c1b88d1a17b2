"""Documents said anew, as text for pretraining: rewritten, summarised, or as questions and answers.

WRAP (arXiv:2401.16380) trains on rephrased text beside the originals; a share that is known and
kept matters more than the style. ``style`` says of each row what it is, ``source`` of which
document, and the originals are in the set unless they are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError, did_you_mean
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record, derived_seed
from data_gen.rouge import rouge_l
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

GENERATOR = "rephrase"
_KEEP = "Keep every fact, name and number; add none. Write the text alone, without comment."
STYLES = {
    "rewrite": f"Rewrite the text below in clear prose, as an encyclopedia would. {_KEEP}",
    "simple": f"Rewrite the text below in short sentences and simple words. {_KEEP}",
    "summary": f"Summarise the text below in at most a third of its length. {_KEEP}",
    "questions": "Turn the text below into questions, each followed by its full answer, that cover "
    f'all that it says, in the form "Question: ..." and "Answer: ...". {_KEEP}',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rephrasing(Writing):
    """What is said anew, and how. Raises UsageError for what cannot work."""

    styles: Sequence[str] = ("rewrite", "summary", "questions")
    per_document: int = 1  # styles, drawn by seed
    share: float = 1.0  # of the documents that are rephrased, drawn by seed
    originals: bool = True  # keep the documents themselves as rows, too
    max_chars: int = 12_000  # a longer document is not rephrased, and counted
    copied: float = 0.9  # ROUGE-L with the document from which it is no rephrasing

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(per_document=self.per_document, max_chars=self.max_chars)
        for style in self.styles or ("",):
            if style not in STYLES:
                raise UsageError(f"there is no style {style!r}.{did_you_mean(style, STYLES)}")
        if self.per_document > len(self.styles):
            raise UsageError(f"per_document is {self.per_document} of {len(self.styles)} styles")
        if not 0 <= self.share <= 1:
            raise UsageError(f"share is from 0 to 1, got {self.share!r}")


def rephrase(documents: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Say documents anew for pretraining.

    ``documents`` are texts, rows with ``text``, or a file of rows. ``settings`` are those of
    ``Rephrasing`` and ``Common``. Returns ``text`` with ``style`` ("original" for a document as it
    was). Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Rephrasing)
    chosen = Rephrasing(**rest)
    rows = source_rows(documents, "text")
    make = _Rephrase(chosen, common.seed)
    content = [str(row["text"]) for row in rows]
    plan = rows_plan(GENERATOR, make, chosen, common.seed, documents=(rows, content))
    return run(plan, servers, out, common)


@dataclass(frozen=True, slots=True)
class _Rephrase:
    """The generator: an item is a document."""

    settings: Rephrasing
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        text = str(item.value["text"])
        chosen, draw = self.settings, random.Random(derived_seed(self.seed, item.key))
        as_it_is = Provenance(GENERATOR, source=source_of(item.value, text))
        original = Record({"text": text}, as_it_is, extra={"style": "original"})
        records = [original] if chosen.originals else []
        if draw.random() >= chosen.share:
            return records
        if len(text) > chosen.max_chars:
            too_long = Record({"text": text[:200]}, as_it_is, extra={"style": ""})
            return [*records, too_long.drop("document too long to rephrase")]
        for style in draw.sample(list(chosen.styles), chosen.per_document):
            request = chosen.request(self.seed, item.key, style)
            reply = await ask(user(f"{STYLES[style]}\n\nText:\n{text}"), **request)
            made_by = provenance(GENERATOR, as_it_is.source, reply, request)
            problem = flaw(reply)
            if not problem and rouge_l(text, said(reply)) >= chosen.copied:
                problem = "copies the document"
            columns, extra = {"text": said(reply)}, {"style": style}
            records.append(Record(columns, made_by, extra=extra, dropped=problem))
        return records
