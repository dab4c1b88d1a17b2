"""Rows of any usual form -> conversations. Decides what a row means and which rows are refused.

    messages            [{"role", "content", ...}], with "tools" beside it: OpenAI's form
    prompt, completion  two texts (a user's and the assistant's), or two lists of messages
    instruction         and "output", with "input" and "system" where there are any: Alpaca's form
    conversations       [{"from", "value"}], with "system" and "tools" beside it: ShareGPT's form

Text only. What Arrow fills in for a missing key (None) is left out, arguments of a tool call that
are JSON in a string become what they say, and a message's parts of type "text" become one text:
templates expect it so. An assistant's message with ``"weight": 0`` is context and not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from envs.files import of_split, read
from posttrain.errors import UsageError

Row = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}


class Format(StrEnum):
    """The forms of a row."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt-completion"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, as chat templates take it; ``tools`` are JSON schemas."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """Indices of the assistant's messages."""
        return tuple(i for i, m in enumerate(self.messages) if m["role"] == "assistant")

    @property
    def trained(self) -> tuple[int, ...]:
        """Indices of those that are to be learnt."""
        return tuple(i for i in self.answers if self.messages[i].get("weight", 1))


def read_rows(source: Any) -> list[dict[str, Any]]:
    """All rows of a .jsonl, .json or .parquet file, a saved data set, a Dataset or a list.

    Raises UsageError that names the file and the line, or the row, counted from 1.
    """
    if isinstance(source, (str, Path)):
        rows: Iterable[Any] = read(str(source))
    else:
        rows = of_split(source, "train", "the data") if hasattr(source, "to_list") else source
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise UsageError(f"{name_of(source)}, row {number}: not columns but {kind}")
        found.append(dict(row))
    if not found:
        raise UsageError(f"{name_of(source)} holds no rows")
    return found


def name_of(source: Any) -> str:
    """What to call the source in a message."""
    return str(source) if isinstance(source, (str, Path)) else "the data"


@contextmanager
def at_row(name: str, number: int) -> Iterator[None]:
    """A UsageError raised inside says where: ``name``, row ``number`` (from 1)."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{name}, row {number}: {error}") from error


def conversations(source: Any) -> list[Conversation]:
    """Every row of the source as a conversation. Raises UsageError that names file and row."""
    found = []
    for number, row in enumerate(read_rows(source), 1):
        with at_row(name_of(source), number):
            found.append(conversation(row))
    return found


def each_answer(conversation: Conversation) -> list[Conversation]:
    """One conversation for each trained answer, which ends with it; what came before is context."""
    return [
        Conversation(
            (
                *({**m, "weight": 0} if m["role"] == "assistant" else m for m in earlier),
                conversation.messages[i],
            ),
            conversation.tools,
        )
        for i in conversation.trained
        for earlier in [conversation.messages[:i]]
    ]


def detect(columns: Iterable[str]) -> Format:
    """The form of rows with these columns. Raises UsageError where it is no known one."""
    given = list(columns)
    for form, needed in _NEEDED.items():
        if needed <= set(given):
            return form
    raise UsageError(
        "no 'messages', no 'prompt' and 'completion', no 'instruction' and 'output' and no "
        f"'conversations' (found: {sorted(map(str, given))})"
    )


def conversation(row: Row) -> Conversation:
    """A row of any known form, checked. Raises UsageError that says what is wrong with it."""
    form = detect(name for name, value in row.items() if value is not None)
    messages = tuple(_message(message) for message in _READERS[form](row))
    checked = Conversation(messages, _tools(row.get("tools")))
    _check(checked)
    return checked


def _check(conversation: Conversation) -> None:
    messages, answers = conversation.messages, conversation.answers
    if not answers:
        raise UsageError("no message has the role 'assistant', so there is nothing to learn")
    if not conversation.trained:
        raise UsageError("every assistant's message has the weight 0: nothing is left to learn")
    if all(m["role"] in ("system", "developer") for m in messages[: answers[0]]):
        raise UsageError("the assistant speaks first: there is nothing to answer")
    for i in answers:
        said = [messages[i].get(key) for key in ("content", *THOUGHTS, "tool_calls")]
        if not any(part.strip() if isinstance(part, str) else part for part in said):
            raise UsageError(f"message {i + 1}, the assistant's, is empty")


# A reasoning model's thoughts, where they are a field of their own.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"a message must be {{'role': ..., 'content': ...}}, got {message!r:.80}")
    kept = {key: value for key, value in message.items() if value is not None}
    if kept.get("role") not in ROLES:
        raise UsageError(f"unknown role {kept.get('role')!r}; roles are {', '.join(ROLES)}")
    if "tool_calls" in kept:
        kept["tool_calls"] = [_tool_call(call) for call in kept["tool_calls"]]
    if "content" not in kept and not kept.get("tool_calls"):
        raise UsageError("every message needs a 'role' and a 'content'")
    kept["content"] = _text(kept.get("content", ""))
    return kept


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        kinds = {part.get("type") for part in content}
        if kinds <= {"text"}:
            return "".join(str(part.get("text", "")) for part in content)
        raise UsageError(f"content of type {sorted(map(str, kinds - {'text'}))}: only text is read")
    raise UsageError(f"content must be text, got {content!r:.80}")


def _tool_call(call: Any) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "arguments"}}, arguments not as a string."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"a tool call needs a 'function' with a 'name', got {call!r:.80}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", "the arguments of a tool call")
    rest = {k: v for k, v in call.items() if k in ("id", "type") and v is not None}
    named = {"name": function["name"], "arguments": _without_none(arguments)}
    return {"type": "function", **rest, "function": named}


def _without_none(value: Any) -> Any:
    """Arrow gives every record the keys of all: what is None was not there."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(tools, str):
        tools = _json(tools or "[]", "the column 'tools'")
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UsageError(f"'tools' must be a list of JSON schemas, got {tools!r:.80}")
    return tuple(_without_none(tool) for tool in tools)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{what} is not JSON ({error.msg}): {text!r:.80}") from error


# the forms


def _messages(row: Row, column: str = "messages") -> list[Any]:
    messages = row[column]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError(f"{column!r} must be a list of at least one message")
    return list(messages)


def _prompt_completion(row: Row) -> list[Any]:
    # What stands in the prompt is given, also where the assistant said it.
    return [
        {**m, "weight": 0} if isinstance(m, Mapping) and m.get("role") == "assistant" else m
        for m in _said(row, "prompt", "user")
    ] + _said(row, "completion", "assistant")


def _said(row: Row, column: str, role: str) -> list[Any]:
    said = row[column]
    return [{"role": role, "content": said}] if isinstance(said, str) else _messages(row, column)


def _alpaca(row: Row) -> list[Any]:
    parts = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(part, str) for part in [*parts, row["output"]]):
        raise UsageError("'instruction', 'input' and 'output' must be texts")
    asked = "\n\n".join(part for part in parts if part.strip())
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [
        *system,
        {"role": "user", "content": asked},
        {"role": "assistant", "content": row["output"]},
    ]


def _sharegpt(row: Row) -> list[Any]:
    turns = _messages(row, "conversations")
    if all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        return turns  # the column's name, with OpenAI's messages in it
    said = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in turns:
        if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
            raise UsageError(f"a turn must be {{'from': ..., 'value': ...}}, got {turn!r:.80}")
        speaker = turn["from"]
        if speaker not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise UsageError(f"unknown speaker {speaker!r} in 'from'; known are {known}")
        message = {"role": _SPEAKERS[speaker], "content": turn["value"]}
        if speaker == "function_call":
            message |= {"content": "", "tool_calls": [_json(turn["value"], "a function call")]}
        said.append(message)
    return said


_NEEDED: dict[Format, set[str]] = {
    Format.MESSAGES: {"messages"},
    Format.SHAREGPT: {"conversations"},
    Format.PROMPT_COMPLETION: {"prompt", "completion"},
    Format.ALPACA: {"instruction", "output"},
}
_READERS: dict[Format, Callable[[Row], list[Any]]] = {
    Format.MESSAGES: _messages,
    Format.SHAREGPT: _sharegpt,
    Format.PROMPT_COMPLETION: _prompt_completion,
    Format.ALPACA: _alpaca,
}
