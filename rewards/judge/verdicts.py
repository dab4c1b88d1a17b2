"""Decides what a verdict looks like and when a reply is one. Strict: in doubt it is none.

A verdict is one JSON object and nothing beside it::

    {"key": "k-1f…", "reason": "why", "verdict": {"accuracy": "full", "style": 4}}

``verdict`` names every field once, with one of its levels in exactly that form. A level outside the
scale is *not* clamped into it: 100 on a scale to 10 shows that the judge did not understand or was
talked into something, and its nearest level would be the best grade. ``key`` is told to the judge
alone, so that a reply that repeats a verdict found in the answer is no verdict. Nothing is searched
for inside prose: a judge's comment quotes the answer, and the answer may hold a verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Level = str | int
Fields = Mapping[str, tuple[Level, ...]]  # a name -> the levels that it may take

MAX_REPLY_CHARS = 100_000
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class NotAVerdict(ValueError):
    """The reply is no verdict. The message is ours, and quotes nothing of the reply."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge decided: one level per field."""

    levels: Mapping[str, Level]
    reason: str = ""


def schema(fields: Fields, key: str, reason_chars: int) -> dict[str, Any]:
    """The JSON schema of a verdict; the reason stands before what it is the reason of."""
    grades = {name: {"enum": list(levels)} for name, levels in fields.items()}
    properties: dict[str, Any] = {"key": {"type": "string", "enum": [key]}}
    if reason_chars:
        properties["reason"] = {"type": "string", "maxLength": reason_chars}
    for grade in grades.values():
        grade["type"] = "string" if isinstance(grade["enum"][0], str) else "integer"  # type: ignore[assignment]
    properties["verdict"] = _object(grades)
    return _object(properties)


def example(fields: Fields, key: str, reason_chars: int) -> str:
    """The same in words, for the prompt; a server without structured output has only this."""
    grades = ", ".join(f"{json.dumps(name)}: {_choice(levels)}" for name, levels in fields.items())
    reason = '"reason": "one or two sentences", ' if reason_chars else ""
    return f'{{"key": "{key}", {reason}"verdict": {{{grades}}}}}'


def parse(reply: str, fields: Fields, key: str) -> Verdict:
    """The verdict that ``reply`` is. Raises NotAVerdict with the first thing that is wrong."""
    found = _only_object(reply)
    unknown = found.keys() - {"key", "reason", "verdict"}
    if unknown or not {"key", "verdict"} <= found.keys():
        raise NotAVerdict("the object must have exactly key, reason and verdict")
    if found["key"] != key:
        raise NotAVerdict("the key is not the one of this call")
    reason, grades = found.get("reason", ""), found["verdict"]
    if not isinstance(reason, str) or not isinstance(grades, dict):
        raise NotAVerdict("reason must be text and verdict an object")
    if grades.keys() != fields.keys():
        raise NotAVerdict("verdict must name every field once and no other")
    for name, levels in fields.items():
        if not any(type(grades[name]) is type(level) and grades[name] == level for level in levels):
            raise NotAVerdict(f"{name} is not one of its levels")
    return Verdict(grades, reason)


def _only_object(reply: str) -> dict[str, Any]:
    """The JSON object that the reply consists of, behind closed thinking, fenced or not."""
    if len(reply) > MAX_REPLY_CHARS:
        raise NotAVerdict("the reply is too long")
    text = reply.strip()
    if text.startswith("<think>"):
        _, closed, text = text.rpartition("</think>")
        if not closed:
            raise NotAVerdict("the reply ends while it thinks")
        text = text.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        found = json.loads(
            fenced[1] if fenced else text,
            strict=False,  # a line end inside the reason does no harm
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except NotAVerdict:
        raise
    except (ValueError, RecursionError):
        raise NotAVerdict("the reply is not one JSON object and nothing else") from None
    if not isinstance(found, dict):
        raise NotAVerdict("the reply is JSON, but not an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise NotAVerdict("a name stands twice in an object")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise NotAVerdict(f"{name} is no JSON")


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _choice(levels: tuple[Level, ...]) -> str:
    if isinstance(levels[0], int) and len(levels) > 2:
        return f"a whole number from {levels[0]} to {levels[-1]}"
    return " or ".join(json.dumps(level) for level in levels)
