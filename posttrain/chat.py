"""Messages -> token ids, and back to text for people.

The first prompt of an episode is the chat template's rendering. Every later prompt *extends* the
ids that were sampled: only the new messages are rendered, and the assistant's turn is never
decoded and re-encoded. What the template writes between an assistant's end token and the next
message is found once, from the template itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs import Message
from posttrain.errors import UsageError
from posttrain.types import Ints

_ANSWER = "\N{BLACK SQUARE}"  # a stand-in for what an assistant wrote


class Chat:
    """A tokenizer with a chat template, as the loop needs it.

    Raises UsageError when the tokenizer has no chat template or no end token.
    """

    def __init__(self, tokenizer: Any, name: str = "the tokenizer") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"{name} has no chat template, and the environment gives messages: "
                "set tokenizer.chat_template and save it with the checkpoint"
            )
        if tokenizer.eos_token_id is None:
            raise UsageError(f"{name} has no end-of-sequence token: generation would never stop")
        self.tokenizer = tokenizer
        opening: list[Message] = [{"role": "user", "content": "?"}]
        self._probe: list[Message] = [*opening, {"role": "assistant", "content": _ANSWER}]
        self._closed = self._render(self._probe, generate=False)
        self._closing = self._closed[self._closed.rindex(_ANSWER) + len(_ANSWER) :]
        closing_ids = self.encode(self._closing)
        special = set(tokenizer.all_special_ids)
        ends_turn = bool(closing_ids) and closing_ids[0] in special
        self._end_of_turn = closing_ids[0] if ends_turn else int(tokenizer.eos_token_id)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: the template's end of turn first, then the end of text."""
        return tuple(dict.fromkeys((self._end_of_turn, int(self.tokenizer.eos_token_id))))

    def prompt_ids(self, messages: Sequence[Message]) -> Ints:
        """The conversation, ready for the assistant to write; [T]."""
        return np.asarray(self.encode(self._render(messages)), dtype=np.int64)

    def extend(
        self, prompt_ids: Ints, completion_ids: Ints, new_messages: Sequence[Message]
    ) -> Ints:
        """The next turn's prompt: prompt + completion as sampled + the rendered new messages."""
        after = self._render([*self._probe, *new_messages])
        if not after.startswith(self._closed):
            raise UsageError(
                "the chat template rewrites an assistant's message once another follows it, "
                "so sampled tokens can't be kept: use a template that only appends"
            )
        new = self.encode(self._closing + after[len(self._closed) :])
        if len(completion_ids) and int(completion_ids[-1]) == self._end_of_turn == new[0]:
            new = new[1:]  # the model wrote it itself
        return np.concatenate([prompt_ids, completion_ids, np.asarray(new, dtype=np.int64)])

    def encode(self, text: str) -> list[int]:
        """Plain text, with no token added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Ints) -> str:
        """Text of a completion, without the end token."""
        return str(self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def _render(self, messages: Sequence[Message], generate: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generate,
            )
        )
