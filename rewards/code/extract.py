"""Decides which part of a response is the program.

1. Only what stands after the last closed thinking section counts; a response whose last section is
   still open has no program.
2. Of the fenced blocks there, it is the last one in the wanted language. A fence is a line of
   at least three backticks or tildes, indented by at most three spaces; it is closed by a line of
   at least as many of the same. A block without a language counts as being in the wanted one.
3. A block that is not closed runs to the end of the text: the model may have stopped there. If it
   was cut off instead, it will not run, or fails.
4. Without any fence there is no program, unless ``bare``: then the whole text is.

Nothing is parsed, let alone run; the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.answer_text import after_thinking
from rewards.code.languages import language_of_fence

_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    language: str  # a name of ours; "" when the fence has none, as written when we do not know it
    code: str


def spans(text: str) -> Iterator[tuple[str, int, int]]:
    """All fenced blocks, in order: language, and where the code starts and ends in ``text``."""
    mark, language, start = "", "", 0
    for fence in _FENCE.finditer(text):
        if not mark:
            mark, info = fence.groups()
            language = language_of_fence(info) if info else ""
            start = min(fence.end() + 1, len(text))
        elif fence[1].startswith(mark) and not fence[2].strip():
            yield language, start, fence.start()
            mark = ""
    if mark:
        yield language, start, len(text)


def program(response: str, language: str | None = None, *, bare: bool = False) -> Block | None:
    """The program of a response; None when there is none. See the module for the rules.

    With ``language`` None the last block counts in whatever language it is.
    """
    text = after_thinking(response)
    if text is None:
        return None
    text = text.replace("\r\n", "\n")
    last, fenced = None, False
    for span in spans(text):
        fenced = True
        if language is None or span[0] in ("", language):
            last = span
    if last:
        return Block(last[0], text[last[1] : last[2]])
    if bare and not fenced and text.strip():
        return Block("", text)
    return None
