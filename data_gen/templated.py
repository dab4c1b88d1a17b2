"""Tasks from a labelled data set by many templates, without a model.

FLAN (arXiv:2109.01652) and P3: each row is asked in several wordings, so that a model learns the
task and not the wording. Which templates a row gets is a function of the seed and the row.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError, did_you_mean
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record, content_hash, derived_seed
from data_gen.running import Common, Plan, run
from data_gen.writing import row_items, source_of, source_rows, user, whole

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "templated"
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Templated:
    """How many wordings each row gets."""

    per_row: int = 1

    def __post_init__(self) -> None:
        whole(per_row=self.per_row)


def templated(
    rows: Any, out: str | Path, *, templates: Sequence[Mapping[str, str]], **settings: Any
) -> Dataset:
    """Rows put into templates: ``{"prompt": "Is {review} good?", "answer": "{label}"}``.

    ``{name}`` is a column of the rows. No server is asked. ``settings`` are ``per_row`` and those
    of ``Common``. Returns ``messages`` with ``template``, its number. Raises UsageError for a
    template that names a column which the rows lack.
    """
    common, rest = Common.split(settings, Templated)
    chosen = Templated(**rest)
    found = source_rows(rows)
    columns = set[str](found[0]).intersection(*found)
    given = [_checked(one, i, columns) for i, one in enumerate(templates, start=1)]
    if not given or chosen.per_row > len(given):
        raise UsageError(f"per_row is {chosen.per_row}, and there are {len(given)} templates")
    job = {
        "generator": GENERATOR,
        "rows": content_hash([str(row) for row in found]),
        "templates": given,
        "per_row": chosen.per_row,
        "seed": common.seed,
    }
    make = _Templated(given, chosen.per_row, common.seed)
    return run(Plan(job, row_items(found), make, len(found)), None, out, common)


@dataclass(frozen=True, slots=True)
class _Templated:
    """The generator: an item is a row."""

    templates: Sequence[Mapping[str, str]]
    per_row: int
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        draw = random.Random(derived_seed(self.seed, item.key))
        records = []
        for number in sorted(draw.sample(range(len(self.templates)), self.per_row)):
            template = self.templates[number]
            prompt, answer = (_filled(template[name], item.value) for name in ("prompt", "answer"))
            messages = [*user(prompt), {"role": "assistant", "content": answer}]
            made_by = Provenance(GENERATOR, source=source_of(item.value, item.key), sample=number)
            dropped = "" if answer.strip() else "no answer"
            extra = {"template": number}
            records.append(Record({"messages": messages}, made_by, extra=extra, dropped=dropped))
        return records


def _filled(template: str, row: Mapping[str, Any]) -> str:
    """The template with its slots filled; a slot in what is filled in stays as it is."""
    return _SLOT.sub(lambda slot: "" if row[slot[1]] is None else str(row[slot[1]]), template)


def _checked(template: Mapping[str, str], number: int, columns: set[str]) -> dict[str, str]:
    found = {name: str(template.get(name) or "") for name in ("prompt", "answer")}
    for name, text in found.items():
        if not text:
            raise UsageError(f"template {number} has no {name!r}")
        for slot in _SLOT.findall(text):
            if slot not in columns:
                near = did_you_mean(slot, columns)
                raise UsageError(
                    f"template {number} names the column {slot!r}, which not every row has.{near}"
                )
    return found
