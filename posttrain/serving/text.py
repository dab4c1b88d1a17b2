"""Tokens become text as they come: whole characters only, and never past a stop string.

Decides what of the text is safe to send. A character whose bytes are spread over several tokens
waits for the last of them; what may be the beginning of a stop string waits until it is clear. The
pieces joined are the text that would have been decoded at once, cut before the stop string that is
complete first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how the bytes of half a character decode
_MOST_UNFINISHED = 3  # of them at the end can still become a character


class TextStream:
    """The text of one completion. ``push`` each token, ``end`` after the last."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Tokens are decoded from ``start``, where a character began some tokens ago: the text of a
        # token depends on the one before it. Of that text the first ``given`` characters are out.
        self._start = self._boundary = self._given = 0
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """What can be sent now; "" while a character is unfinished or a stop string possible."""
        self._ids.append(token_id)
        text = self._decode(self._start)
        finished = len(text) - _unfinished_at_end(text)
        new = text[self._given : finished]
        self._given = finished
        if new and finished == len(text):
            self._start, self._boundary = self._boundary, len(self._ids)
            self._given = len(self._decode(self._start))
        return self._safe(new)

    def end(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        piece = self._safe(self._decode(self._start)[self._given :])
        held, self._held = self._held, ""
        return piece if self.stopped else piece + held

    def _decode(self, start: int) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _safe(self, new: str) -> str:
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _unfinished_at_end(text: str) -> int:
    return min(len(text) - len(text.rstrip(_UNFINISHED)), _MOST_UNFINISHED)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
