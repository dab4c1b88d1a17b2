"""How models write tool calls in their text, and how such text is read.

Which format a model uses is told by its chat template (``format_of``). Reading is strict JSON
(``rewards.json_text``); a call that could not be run is not dropped but reported, so that the
environment can tell the model. What stands inside the model's thinking is no call.

=========  =====================================================================================
hermes     ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; Hermes, Qwen 2.5 and 3
llama3     the whole text is ``{"name": ..., "parameters": {...}}``, several joined by ``;``,
           after ``<|python_tag|>`` or not; Llama 3.1 and later
mistral    ``[TOOL_CALLS][{"name": ..., "arguments": {...}}]`` or ``[TOOL_CALLS]name[ARGS]{...}``
deepseek   between ``<｜tool▁call▁begin｜>`` and ``<｜tool▁call▁end｜>``: V3.1 writes
           ``name<｜tool▁sep｜>{...}``, V3 and R1 ``function<｜tool▁sep｜>name`` and JSON in a fence
=========  =====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards import json_text
from rewards.answer_text import after_thinking
from rewards.tool_calls import ToolCall, read_call

MAX_CALLS = 32  # in one message


@dataclass(frozen=True, slots=True)
class Parsed:
    """A message of the model: its text without the calls, the calls, and what was wrong."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """``example`` is shown to a model that got it wrong."""

    name: str
    parse: Callable[[str], Parsed]
    example: str


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None when it knows no tools."""
    for mark, name in _MARKS:
        if mark in template:
            return FORMATS[name]
    return None


def parse(text: str, form: ToolFormat) -> Parsed:
    """Read what a model wrote, special tokens included. Never raises."""
    spoken = after_thinking(text)
    if spoken is None:
        return Parsed(text)
    thinking = text[: len(text) - len(spoken)]
    found = form.parse(spoken)
    calls, invalid = found.calls, found.invalid
    if len(calls) > MAX_CALLS:
        invalid = (*invalid, f"{len(calls)} calls at once, at most {MAX_CALLS} are run")
        calls = calls[:MAX_CALLS]
    return Parsed((thinking + found.text).strip(), calls, invalid)


def _read_all(pieces: list[str]) -> tuple[tuple[ToolCall, ...], tuple[str, ...]]:
    calls, invalid = [], []
    for piece in pieces:
        try:
            calls.append(read_call(json_text.parse(piece.strip())))
        except ValueError as error:
            invalid.append(f"{error}"[:300])
    return tuple(calls), tuple(invalid)


def _hermes(text: str) -> Parsed:
    before, *sections = text.split("<tool_call>")
    pieces, rest, invalid = [], [before], []
    for section in sections:
        inside, closed, after = section.partition("</tool_call>")
        if closed:
            pieces.append(inside)
            rest.append(after)
        else:
            invalid.append("<tool_call> is not closed")
    calls, wrong = _read_all(pieces)
    return Parsed("".join(rest), calls, (*invalid, *wrong))


def _llama3(text: str) -> Parsed:
    _, tagged, after = text.partition("<|python_tag|>")
    body = (after if tagged else text).strip()
    if not body.startswith("{"):
        return Parsed(text)
    calls, wrong = _read_all([_renamed(piece) for piece in re.split(r"(?<=})\s*;\s*(?={)", body)])
    named = [call for call in calls if call.name]
    if not tagged and not named:
        return Parsed(text)  # an answer that happens to be JSON
    return Parsed("", calls, wrong)


def _renamed(piece: str) -> str:
    """Llama's "parameters" are everybody else's "arguments"."""
    return re.sub(r'"parameters"(\s*:)', r'"arguments"\1', piece, count=1)


def _mistral(text: str) -> Parsed:
    before, *sections = text.split("[TOOL_CALLS]")
    calls: list[ToolCall] = []
    invalid: list[str] = []
    for section in (part.strip() for part in sections):
        try:
            if section.startswith("["):
                calls += [read_call(one) for one in json_text.parse(section)]
            else:
                name, arguments = _name_and_arguments(section)
                calls.append(read_call({"name": name, "arguments": json_text.parse(arguments)}))
        except (ValueError, TypeError) as error:
            invalid.append(f"{error}"[:300])
    return Parsed(before, tuple(calls), tuple(invalid))


def _name_and_arguments(section: str) -> tuple[str, str]:
    name, marked, arguments = section.partition("[ARGS]")
    if not marked:
        name, brace, rest = section.partition("{")
        arguments = brace + rest
    return name.partition("[CALL_ID]")[0].strip(), arguments


def _deepseek(text: str) -> Parsed:
    before, *sections = re.sub("<｜tool▁calls▁(?:begin|end)｜>", "", text).split(
        "<｜tool▁call▁begin｜>"
    )
    calls: list[ToolCall] = []
    invalid: list[str] = []
    for section in sections:
        inside, closed, _ = section.partition("<｜tool▁call▁end｜>")
        name, separated, arguments = inside.partition("<｜tool▁sep｜>")
        if name.strip() == "function":  # V3 and R1
            name, _, arguments = arguments.partition("\n")
            arguments = arguments.strip().removeprefix("```json").removesuffix("```")
        try:
            if not closed or not separated:
                raise ValueError("<｜tool▁call▁begin｜> without its separator or end")
            given = {"name": name.strip(), "arguments": json_text.parse(arguments.strip())}
            calls.append(read_call(given))
        except ValueError as error:
            invalid.append(f"{error}"[:300])
    return Parsed(before, tuple(calls), tuple(invalid))


FORMATS = {
    one.name: one
    for one in (
        ToolFormat(
            "hermes", _hermes, '<tool_call>\n{"name": "tool", "arguments": {"x": 1}}\n</tool_call>'
        ),
        ToolFormat("llama3", _llama3, '{"name": "tool", "parameters": {"x": 1}}'),
        ToolFormat("mistral", _mistral, '[TOOL_CALLS][{"name": "tool", "arguments": {"x": 1}}]'),
        ToolFormat(
            "deepseek",
            _deepseek,
            '<｜tool▁call▁begin｜>tool<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>',
        ),
    )
}
# The first mark that a template has decides.
_MARKS = (
    ("tool▁call▁begin", "deepseek"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3"),
    ('"parameters"', "llama3"),
)
