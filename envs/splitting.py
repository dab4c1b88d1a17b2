"""Decides which tasks are held out for evaluation: by a hash of the question, and nothing else.

The rule needs no list and no order, so it is the same for every seed, every data source and every
program that applies it (a base checkpoint pretrained on the training side of it has not seen the
held-out side either), and a question that appears twice is always on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from envs.protocol import Message

PERCENT = 10


def held_out(question: str, percent: int = PERCENT) -> bool:
    """Whether ``question`` belongs to the held-out ``percent`` of all questions.

    ``int.from_bytes(blake2b(question.strip().encode(), digest_size=8), "big") % 100 < percent``.
    """
    digest = hashlib.blake2b(question.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def question_of(messages: Sequence[Message]) -> str:
    """The text that stands for a conversation: its last user message, stripped."""
    for message in reversed(messages):
        if message["role"] == "user":
            return str(message["content"]).strip()
    return "\n".join(str(message["content"]) for message in messages).strip()
