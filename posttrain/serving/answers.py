"""Decides what an answer looks like: OpenAI's objects, whole or as the chunks of a stream.

Both are made from the same ``Piece``s, so a stream's pieces joined are the text of the whole.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.serving.decoder import Token


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to one choice."""

    choice: int
    text: str
    token: Token
    finish_reason: str | None = None


@dataclass(slots=True)
class Answer:
    """The names and counts that all objects of one answer share."""

    chat: bool
    model: str
    wants_logprobs: bool
    wants_ids: bool
    spell: Any  # token id -> its text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, n_choices: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer at once."""
        choices = [
            self._choice(i, [piece for piece in pieces if piece.choice == i])
            for i in range(n_choices)
        ]
        return self._frame("chat.completion", choices) | {"usage": self.usage()}

    def opening(self, choice: int) -> dict[str, Any]:
        """The first chunk of a choice of a chat: who speaks."""
        return self._chunk({"index": choice, "delta": {"role": "assistant", "content": ""}})

    def says(self, piece: Piece) -> bool:
        """Whether there is anything in the piece to be told."""
        told = self.wants_logprobs or self.wants_ids
        return bool(piece.text or piece.finish_reason or told)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The chunk for one piece."""
        said: dict[str, Any] = {"text": piece.text}
        if self.chat:
            said = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk(
            {
                "index": piece.choice,
                **said,
                "logprobs": self._logprobs([piece]) if self.wants_logprobs else None,
                "finish_reason": piece.finish_reason,
                **self._ids([piece]),
            }
        )

    def last_chunk(self) -> dict[str, Any]:
        """The chunk that only counts."""
        return self._frame("chat.completion.chunk", []) | {"usage": self.usage()}

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text}}
        return {
            "index": index,
            **said,
            "logprobs": self._logprobs(pieces) if self.wants_logprobs else None,
            "finish_reason": pieces[-1].finish_reason,
            **self._ids(pieces),
        }

    def _ids(self, pieces: Sequence[Piece]) -> dict[str, list[int]]:
        if not self.wants_ids:
            return {}
        return {"token_ids": [piece.token.token_id for piece in pieces]}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._frame("chat.completion.chunk", [{"finish_reason": None, **choice}])

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.id,
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        tokens = [piece.token for piece in pieces]
        if self.chat:
            return {"content": [self._content(token) for token in tokens]}
        offsets, at = [], 0
        for piece in pieces:
            offsets.append(at)
            at += len(piece.text)
        return {
            "tokens": [self.spell(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self.spell(one): logprob for one, logprob in token.alternatives}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _content(self, token: Token) -> dict[str, Any]:
        return self._entry(token.token_id, token.logprob) | {
            "top_logprobs": [self._entry(*pair) for pair in token.alternatives]
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.spell(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
