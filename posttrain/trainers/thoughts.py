"""A reasoning model's thoughts in a message: where they stand, and a message with or without them.

They stand in the content, closed by ``</think>`` (a prompt may have opened them), or in a field.
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.errors import UsageError
from posttrain.trainers.conversations import THOUGHTS, Conversation

Message = dict[str, Any]

_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def thinks(message: Message) -> bool:
    """Whether the assistant thinks in this message."""
    if message["role"] != "assistant":
        return False
    return "</think>" in message["content"] or any(message.get(name) for name in THOUGHTS)


def bare(message: Message) -> Message:
    """Without thoughts in a field of their own."""
    return {key: value for key, value in message.items() if key not in THOUGHTS}


def with_thoughts(message: Message) -> str:
    """Everything the assistant writes, as text."""
    thought = next((message[name] for name in THOUGHTS if message.get(name)), "")
    content: str = message["content"]
    return f"<think>\n{thought}\n</think>\n\n{content}" if thought else content


def without_thoughts(conversation: Conversation) -> Conversation:
    """Only what follows the thoughts. Raises UsageError where nothing does."""
    messages = []
    for number, message in enumerate(conversation.messages, 1):
        if thinks(message):
            said = _THOUGHT.sub("", message["content"]).rpartition("</think>")[2].lstrip("\n")
            message = {**bare(message), "content": said}
            if not said.strip() and not message.get("tool_calls"):
                raise UsageError(f"message {number} is empty without its thoughts")
        messages.append(message)
    return Conversation(tuple(messages), conversation.tools)
