"""A reward for calling the right tools with the right arguments.

The calls that were made are those of the assistant's last message: its ``tool_calls`` in OpenAI's
form, else every ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` in the text after the
thinking (the form of Hermes and Qwen). The calls expected are a column of every row, a list of
``{"name": ..., "arguments": {...}}``; an empty list means that none should be made.

Arguments are compared as JSON: the order of keys does not matter, 1 equals 1.0, and neither "1" nor
true equals 1; an argument left out is not one given its default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards import json_text
from rewards.answer_text import after_thinking
from rewards.registry import register
from rewards.score import Outcome, Score

MAX_CALLS = 128
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[^\s<>\"']{1,200}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]

    def equals(self, other: ToolCall) -> bool:
        return self.name == other.name and json_text.same(self.arguments, other.arguments)


def _check_expected(fields: Mapping[str, Any]) -> None:
    if "expected_calls" in fields:
        expected(fields["expected_calls"])


@register("tool_calls", settings=["ordered", "partial"], check=_check_expected)
def tool_calls(
    completion: str,
    messages: Sequence[Mapping[str, Any]],
    expected_calls: Any,
    ordered: bool = True,
    partial: bool = False,
) -> Score:
    """1 when the calls made are the calls expected, no more and no fewer; else 0.

    ``ordered=False``: in any order. ``partial``: the value is 2 * matched / (made + expected),
    where in order means the longest common run of calls with gaps. ``parts``: how many were made
    and matched, and how many names were right. A call that is not valid JSON, or not closed, makes
    the whole UNPARSEABLE, 0: it would not have run.

    Can it be hacked? With ``partial``, by a call that is nearly always expected. Where an empty
    list is expected, by saying nothing at all: sum it with a reward for the answer. A call that
    would do the same with other arguments counts as wrong.
    """
    wanted = expected(expected_calls)
    try:
        made = made_calls(completion, messages)
    except ValueError as error:
        return Score(0.0, Outcome.UNPARSEABLE, detail=str(error)[:300])
    matched = _matched(made, wanted, ordered)
    names = _matched([_bare(c) for c in made], [_bare(c) for c in wanted], ordered)
    parts = {"made": float(len(made)), "matched": float(matched), "names": float(names)}
    if matched == len(made) == len(wanted):
        return Score(1.0, Outcome.CORRECT, parts)
    value = 2 * matched / (len(made) + len(wanted)) if partial else 0.0
    detail = f"{matched} of {len(wanted)} calls matched, {len(made)} made"
    return Score(value, Outcome.WRONG, parts, detail)


def expected(calls: Any) -> list[ToolCall]:
    """The expected calls of a row, a list or its JSON text. Raises ValueError."""
    if isinstance(calls, str):
        calls = json_text.parse(calls)
    if not isinstance(calls, Sequence):
        raise ValueError(f"expected_calls must be a list of calls, got {calls!r:.80}")
    return [read_call(one) for one in calls]


def made_calls(completion: str, messages: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """The calls of the last message. Raises ValueError for one that could not be run."""
    last = messages[-1] if messages else {}
    given = last.get("tool_calls") if last.get("role") == "assistant" else None
    if given:
        if not isinstance(given, Sequence) or len(given) > MAX_CALLS:
            raise ValueError(f"tool_calls must be a list of at most {MAX_CALLS}")
        return [read_call(one) for one in given]
    text = after_thinking(completion) or ""
    sections = text.split(_OPEN)[1:]
    if len(sections) > MAX_CALLS or text.count(_CLOSE) != len(sections):
        raise ValueError(f"{len(sections)} {_OPEN} and {text.count(_CLOSE)} {_CLOSE}")
    found = []
    for section in sections:
        inside, closed, _ = section.partition(_CLOSE)
        if not closed:
            raise ValueError(f"a {_OPEN} is not closed")
        found.append(read_call(json_text.parse(inside.strip())))
    return found


def read_call(given: Any) -> ToolCall:
    """A call in Hermes' or OpenAI's form; arguments may be JSON text. Raises ValueError."""
    if isinstance(given, Mapping) and isinstance(given.get("function"), Mapping):
        given = given["function"]
    if not isinstance(given, Mapping):
        raise ValueError(f"a tool call must be an object, got {given!r:.80}")
    name, arguments = given.get("name"), given.get("arguments", {})
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a tool call needs a name, got {name!r:.80}")
    if isinstance(arguments, str):
        arguments = json_text.parse(arguments or "{}")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {name} must be an object, got {arguments!r:.80}")
    return ToolCall(name, arguments)


def _bare(call: ToolCall) -> ToolCall:
    return ToolCall(call.name, {})


def _matched(made: Sequence[ToolCall], wanted: Sequence[ToolCall], ordered: bool) -> int:
    """How many calls of the two lists can be paired off, in order or in any."""
    if not ordered:
        left = list(wanted)
        for call in made:
            hit = next((i for i, one in enumerate(left) if one.equals(call)), None)
            if hit is not None:
                del left[hit]
        return len(wanted) - len(left)
    row = [0] * (len(wanted) + 1)  # longest common subsequence
    for call in made:
        before = row
        row = [0]
        for i, one in enumerate(wanted):
            row.append(before[i] + 1 if one.equals(call) else max(row[i], before[i + 1]))
    return row[-1]
