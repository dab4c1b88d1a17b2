"""Sentinels in place of messages, to see what a chat template makes of them.

A sentinel is a number between two signs that no message of the conversation holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UsageError
from posttrain.trainers.conversations import Conversation
from posttrain.trainers.thoughts import bare

Message = dict[str, Any]

_SIGNS = "\N{BLACK SQUARE}\N{WHITE SQUARE}\N{LOZENGE}\N{REFERENCE MARK}\N{SECTION SIGN}"


@dataclass(frozen=True, slots=True)
class Around:
    """What the template writes around an answer that is part of the assistant's turn."""

    lead: str
    close: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of an order of roles: how answers are probed, and what stands around each."""

    calls: bool  # a message with tool calls is probed as one, because it must be one
    around: dict[int, Around]


def shape(conversation: Conversation) -> tuple[Any, ...]:
    """The order of roles, as far as a template can tell it from the messages' kinds."""
    called = (
        [c["function"]["name"] for c in m.get("tool_calls", ())] for m in conversation.messages
    )
    kinds = ((m["role"], *names) for m, names in zip(conversation.messages, called, strict=True))
    return (*kinds, bool(conversation.tools))


def sentinels(messages: Sequence[Message]) -> list[str]:
    """One for each message; nothing that any of them says holds one."""
    said = "".join(f"{message!r}" for message in messages)
    sign = next(sign for sign in _SIGNS if sign not in said)
    return [f"{sign}{i}{sign}" for i in range(len(messages))]


def replaced(message: Message, mark: str, calls: bool) -> Message:
    """The message with ``mark`` for what it says; in a tool call, as an argument."""
    plain = bare(message)
    made = plain.pop("tool_calls", None)
    if not (calls and made):
        return {**plain, "content": mark}
    function: Message = made[0]["function"]
    arguments: Any = {mark: ""}
    if isinstance(function["arguments"], str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call = {**made[0], "function": {**function, "arguments": arguments}}
    return {**plain, "content": "", "tool_calls": [call]}


def with_text_arguments(conversation: Conversation) -> Conversation:
    """With the arguments of every call as JSON text, which some templates join to their own."""

    def written(call: Message) -> Message:
        function = call["function"]
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    messages = tuple(
        {**m, "tool_calls": [written(call) for call in m["tool_calls"]]} if "tool_calls" in m else m
        for m in conversation.messages
    )
    return Conversation(messages, conversation.tools)


def text_after(text: str, marks: list[str], i: int) -> str:
    """What follows the sentinel of message ``i``. Raises UsageError unless it is there once."""
    times = text.count(marks[i])
    if times != 1:
        raise unsafe(f"message {i + 1} appears {times} times in the rendering")
    return text.partition(marks[i])[2]


def common(a: str, b: str) -> str:
    """The longest beginning of both."""
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[:same] if same is not None else min(a, b, key=len)


def unsafe(why: str) -> UsageError:
    """An error that says why a template can't be masked, and what would help."""
    return UsageError(
        f"the chat template can't be masked safely: {why}. Enclose what the assistant says in "
        "{% generation %} ... {% endgeneration %} in the template, and set it as chat_template"
    )
