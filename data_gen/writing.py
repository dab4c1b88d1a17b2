"""What generators that have a model write text share: sampling, source rows, what is no use.

A reply is of use when it was finished, says something behind its thinking, and is no refusal by
its opening words. That a text is good is for judges and filters to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item, Make
from data_gen.records import Provenance, Record, content_hash, derived_seed
from data_gen.running import Plan
from data_gen.servers import Message, Reply
from rewards.answer_text import after_thinking

_REFUSAL = re.compile(
    r"\W*(?:(?:i['\u2019]?m|i am) (?:very |so )?(?:sorry|unable)|sorry,? (?:but )?i\b"
    r"|i apologi[sz]e|i (?:can['\u2019]t|cannot|can not|won['\u2019]t) "
    r"(?:help|assist|fulfil|comply|provide|do that)|as an ai\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a model is asked to write. Raises UsageError for what cannot work."""

    model: str = ""  # who writes; may be left out where one model is served
    temperature: float = 0.8
    max_tokens: int = 1024  # of one reply
    top_p: float | None = None

    def __post_init__(self) -> None:
        whole(max_tokens=self.max_tokens)
        if not isinstance(self.temperature, int | float) or self.temperature < 0:
            raise UsageError(f"temperature is a number from 0 on, got {self.temperature!r}")

    def request(self, *seeds: Any) -> dict[str, Any]:
        """The settings of a request whose seed is a function of ``seeds``."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": derived_seed(*seeds),
        }

    def told(self) -> dict[str, Any]:
        """For job.json."""
        return {name: getattr(self, name) for name in type(self).__dataclass_fields__}


def whole(**settings: Any) -> None:
    """Raise UsageError for a setting that is no whole number from 1 on."""
    for name, value in settings.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} is a whole number from 1 on, got {value!r}")


def source_rows(source: Any, *columns: str) -> list[dict[str, Any]]:
    """Rows from a file that ``envs.files`` reads, a data set, mappings, or plain texts.

    A plain text is a row with that text in the first of ``columns``. Raises UsageError for no row,
    or one that has none of ``columns``.
    """
    from envs.files import read

    given: Iterable[Any] = read(str(source)) if isinstance(source, str | Path) else source
    text = columns[0] if columns else "text"
    rows = [{text: one} if isinstance(one, str) else dict(one) for one in given]
    if not rows:
        raise UsageError("the source has no row")
    for number, row in enumerate(rows, start=1):
        if columns and not any(row.get(name) for name in columns):
            needed = " or ".join(map(repr, columns))
            raise UsageError(f"row {number} of the source has no {needed}: {sorted(row)}")
    return rows


def row_items(rows: Iterable[Mapping[str, Any]], *about: Any) -> Iterator[Item]:
    """An item of each row, which its content names."""
    for row in rows:
        yield Item(row, content_hash([json_safe(row), *about]))


def json_safe(value: Any) -> Any:
    """As JSON has it; what JSON lacks (dates, ...) as text."""
    if isinstance(value, Mapping):
        return {str(name): json_safe(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def rows_plan(name: str, make: Make, chosen: Writing, seed: int, **rows: Any) -> Plan:
    """The plan of a generator whose items are rows.

    ``rows`` are the rows under the name that job.json tells them by, with what of them counts:
    ``documents=(rows, [texts])``.
    """
    ((told, (items, content)),) = rows.items()
    job = {
        "generator": name,
        told: content_hash(content),
        "seed": seed,
        "settings": chosen.told(),
    }
    return Plan(job, row_items(items), make, len(items))


def source_of(row: Mapping[str, Any], text: str) -> str:
    """What a row is known by: its ``id``, or a hash of its text."""
    return str(row.get("id") or content_hash(text)[:12])


def user(text: str, system: str = "") -> list[dict[str, str]]:
    """A conversation of one turn."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": text}]


def said(reply: Reply) -> str:
    """What the reply says, without its thinking; empty where the thinking never ended."""
    return (after_thinking(reply.text) or "").strip()


def flaw(reply: Reply) -> str:
    """Why a reply is of no use, or ""."""
    if reply.finish_reason == "length":
        return "cut off"
    if not said(reply):
        return "empty"
    return "refusal" if _REFUSAL.match(said(reply)) else ""


def provenance(name: str, source: str, reply: Reply, request: Mapping[str, Any]) -> Provenance:
    """Where what a reply says comes from."""
    return Provenance(
        name,
        source=source,
        model=reply.model,
        temperature=request["temperature"],
        seed=request["seed"],
        n_tokens=reply.completion_tokens,
        end=reply.finish_reason,
    )


async def answered(
    ask: Ask,
    prompt: Sequence[Message],
    request: Mapping[str, Any],
    *,
    name: str,
    source: str,
    extra: Mapping[str, Any],
) -> Record:
    """The model's answer to a prompt as an SFT record, dropped where it is of no use."""
    reply = await ask(prompt, **request)
    messages = [*map(dict, prompt), {"role": "assistant", "content": said(reply)}]
    made_by = provenance(name, source, reply, request)
    return Record({"messages": messages}, made_by, extra=extra, dropped=flaw(reply))
