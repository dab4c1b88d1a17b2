r"""Decides what the final answer of a response is: one definition for every reward of this package.

After the last closed thinking section (one that never closes leaves no answer), outside of code
that is fenced as a programming language, the answer is

1. what the last ``\boxed{...}`` holds (``\fbox``, nested and brace-less boxes too), else
2. the rest of the line after the last ``####``, else
3. the last ``<answer>...</answer>``, else
4. the rest of the sentence after the last "answer is", "answer:" or "final answer", else
5. the last displayed formula, ``\[ ... \]`` or ``$$ ... $$``, else
6. the whole text, when it is nothing but a number or one formula between dollar signs.

A box that never closes is no answer. Boxes side by side (nothing, punctuation, "and" or "or"
between them, or a few words that end in one of the two) are one list: 41, 42 and 43 in three
boxes are not 42.

``bare=True`` is for texts that are labelled as answers, such as the gold ones: then the whole
text counts when it is short, else its last formula, else its last number. It is never right for
the output of a model that is being trained, which would be free to mention many candidates.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rewards.math.limits import MAX_CHARS, TAIL_CHARS

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)
_READ_FENCES = {"", "tex", "latex", "math", "text", "txt", "markdown", "md", "plain"}
_THINK_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THINK = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_TAG = re.compile(r"<answer>", re.IGNORECASE)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_ANSWER_IS = re.compile(
    r"(?:final\s{1,3}answer(?:\s{1,3}is)?|answer\s{1,3}is|answer(?=\s{0,3}[:=]|\*\*))"
    r"(?:[ \t]{0,3}[:=*]{1,4})*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$|\*)|;(?=\s+[A-Za-z]{2})|<\|")
_CLAUSE = re.compile(r",\s+(?!and\b|or\b)(?=[a-z]{2,}\b)")
_MATH_OPEN = re.compile(r"\\\[|\\\(|\$\$|\$")
_MATH_CLOSE = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
_IS = re.compile(r"(?:\b(?:is|are|be|equals|was|by)\b|\bto\b)[\s:]{1,3}")
_JOIN = re.compile(
    r"(?:[\s,;:&.$~/|*\-–•\\]|\\[,;:! \\()\[\]]|\\(?:quad|qquad|text|mbox|textbf|mathrm)\b"
    r"|\\(?:hspace|newline|left|right)\b"
    r"|[{}()]|\b(?:and|or|und|also|plus|both|respectively)\b|\d{1,2}[.)])*",
    re.IGNORECASE,
)
_JOINING_WORDS = re.compile(r"[^.!?\n=]{0,60}\b(?:and|or)\b[^a-zA-Z.!?=]{0,20}", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|wrong|so|but|no|hence|thus|instead|wait|then|therefore)\b", re.I)
_PLAIN_NUMBER = re.compile(r"[-+−]?\s?(?:\\?\$)?\s?[\d.,]*\d[\d.,]*\s?(?:\\?%)?\.?")
_NUMBER = re.compile(
    r"(?<![\w.,/^])[-+−]?\s?[$€£]?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?"
    r"\s?(?:\\?%|€|£|m²|cm²|km²|°)?(?![\w/])"
)
_RELATION = re.compile(r"[A-Za-z]\s?(?:<=|>=|!=|<|>|=)\s?-?\d+(?:\.\d+)?")
MAX_BARE = 300  # characters of a text that may be an answer as a whole
_PROSE = re.compile(r"[A-Za-z']{2,}[,:]?\s+[a-z']{2,}[,:]?\s+[A-Za-z']{2,}")


def final_answer(text: str, *, bare: bool = False) -> str | None:
    """The text of the final answer, or None. Linear in the length of ``text``."""
    rest = after_thinking(text.rstrip())
    if rest is None:
        return None
    rest = without_code(rest[-TAIL_CHARS:] if len(rest) > TAIL_CHARS else rest)
    boxes = list(_BOX.finditer(rest))
    if boxes:
        return _boxed(rest, boxes)
    marked = _marked(rest)
    if marked is not None:
        return marked.strip() or None
    shown = _displayed(rest)
    if shown is not None and not (bare and re.search(r"\d", rest[shown.end :])):
        return shown.text.strip() or None
    whole = rest.strip()
    if _PLAIN_NUMBER.fullmatch(whole[:100]) and len(whole) <= 100:
        return whole.removesuffix(".")
    if inside := _whole_formula(whole):
        return inside
    return _bare(whole) if bare else None


def after_thinking(text: str) -> str | None:
    """What follows the last closed thinking section; None while still thinking."""
    if "<" not in text or "hink" not in text.lower():
        return text
    closed = 0
    for match in _THINK_END.finditer(text):
        closed = match.end()
    return None if _THINK.search(text, closed) else text[closed:]


def without_code(text: str) -> str:
    """``text`` without what is fenced as a programming language."""
    if "```" not in text and "~~~" not in text:
        return text
    kept, at, opened = [], 0, None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        else:
            if opened[1].lower() not in _READ_FENCES:
                kept.append(text[at : opened.start()])
                at = fence.end()
            opened = None
    if opened is not None and opened[1].lower() not in _READ_FENCES:
        return "".join(kept) + text[at : opened.start()]
    return "".join(kept) + text[at:]


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    """The contents of the last box, or of the boxes side by side that end with it."""
    spans = _spans(text, boxes)
    if spans[-1] is None:
        return None
    found = [spans[-1]]
    for span in reversed(spans[:-1]):
        if span is None or not _joined(text[span[1] : found[0][0]]):
            break
        found.insert(0, span)
    contents = [text[start:end].strip() for _, _, start, end in found]
    contents = [inside for inside in contents if inside] if contents[-1] else [""]
    if len(set(contents)) == 1:
        return contents[0] or None
    return " , ".join(contents)


def _spans(text: str, boxes: list[re.Match[str]]) -> list[tuple[int, int, int, int] | None]:
    """(start, end, start inside, end inside) of each outermost box; None where one never closes."""
    starts = {match.start(): match.end() for match in boxes}
    braces = {match.end() for match in boxes if text[match.end() : match.end() + 1] == "{"}
    closing = _closing_braces(text, braces)
    spans: list[tuple[int, int, int, int] | None] = []
    until = -1
    for start, after in starts.items():
        if start < until:
            continue  # inside the box before
        if after in braces:
            end = closing.get(after)
            spans.append(None if end is None else (start, end + 1, after + 1, end))
            until = end + 1 if end is not None else until
        else:
            end = _one_token(text, after)
            spans.append((start, end, after, end) if end > after else None)
    return spans


def _closing_braces(text: str, wanted: set[int]) -> dict[int, int]:
    """Position of an opening brace -> of the one that closes it, in one pass."""
    closing, stack, i = {}, [], min(wanted, default=len(text))
    while i < len(text):
        char = text[i]
        if char == "\\":
            i += 2 if text[i + 1 : i + 2] in ("{", "}") and text[i - 1 : i] != "\\" else 1
            continue
        if char == "{":
            stack.append(i)
        elif char == "}" and stack:
            opened = stack.pop()
            if opened in wanted:
                closing[opened] = i
        i += 1
    return closing


_TOKEN = re.compile(r"-?\d[\d,]*(?:\.\d+)?|\\[a-zA-Z]+(?:\{[^{}]{0,80}\}){0,2}|[A-Za-z]\b")


def _one_token(text: str, at: int) -> int:
    r"""The end of what a box without braces holds: a number, a letter, ``\frac{1}{2}``."""
    match = _TOKEN.match(text, at)
    return match.end() if match else at


def _joined(gap: str) -> bool:
    """Whether two boxes with this between them are items of one list."""
    if len(gap) > 100:
        return False
    if _JOIN.fullmatch(gap):
        return True
    return bool(_JOINING_WORDS.fullmatch(gap)) and not _DENIAL.search(gap)


def _marked(text: str) -> str | None:
    """What follows the last mark of an answer; empty when nothing does, None without a mark."""
    if "####" in text:
        return text.rpartition("####")[2].lstrip().partition("\n")[0]
    tags = list(_TAG.finditer(text))
    if tags:
        inside = text[tags[-1].end() :]
        end = _TAG_END.search(inside)
        return inside[: end.start()] if end else None
    for mark in reversed(list(_ANSWER_IS.finditer(text))[-8:]):
        sentence = _sentence(text[mark.end() :])
        if sentence or mark.end() >= len(text.rstrip()):
            return sentence
    return None


def _sentence(text: str) -> str:
    """The answer in the sentence that starts here."""
    text = text[: MAX_CHARS * 2].lstrip(" \t\n:*")
    start = _MATH_OPEN.match(text)
    if start and start[0] in ("\\[", "$$"):
        inside, closed, _ = text[start.end() :].partition(_MATH_CLOSE[start[0]])
        if closed:
            return inside
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" *")
    sentence = _CLAUSE.split(sentence, maxsplit=1)[0]
    for match in _IS.finditer(sentence):
        if not re.search(r"\d", sentence[: match.start()]):  # the largest n is 34
            return sentence[match.end() :]
    if not _PROSE.search(sentence):
        return sentence
    numbers = _NUMBER.findall(sentence)
    return numbers[0] if len(numbers) == 1 else sentence


class _Shown(NamedTuple):
    text: str
    end: int


def _displayed(text: str) -> _Shown | None:
    """The last displayed formula."""
    end = text.rfind("\\]")
    start = text.rfind("\\[", 0, max(end, 0))
    if 0 <= start < end:
        return _Shown(text[start + 2 : end], end)
    parts = text.split("$$")
    if len(parts) < 3 or len(parts) % 2 == 0:
        return None
    return _Shown(parts[-2], len(text) - len(parts[-1]))


def _whole_formula(text: str) -> str | None:
    r"""The inside of a text that is one ``$...$`` or ``\(...\)``."""
    text = text.removesuffix(".")
    for open_, close in (("\\(", "\\)"), ("$", "$")):
        if text.startswith(open_) and text.endswith(close) and len(text) > len(open_ + close):
            inside = text[len(open_) : -len(close)]
            if close not in inside and open_ not in inside:
                return inside.strip() or None
    return None


def _bare(text: str) -> str | None:
    """The answer in a text that is labelled as one."""
    if not text:
        return None
    if len(text) <= MAX_BARE and not _PROSE.search(text) and not re.search(r"[a-z]{3}.*\n", text):
        return text
    if (inside := _last_formula(text)) is not None:
        return inside
    if not _PROSE.search(text[-2000:]):
        return text
    candidates = [*_RELATION.finditer(text[-2000:]), *_NUMBER.finditer(text[-2000:])]
    if not candidates:
        return text if len(text) <= MAX_BARE else None
    return max(candidates, key=lambda match: (match.end(), -match.start()))[0]


def _last_formula(text: str) -> str | None:
    r"""The last ``$...$`` or ``\(...\)``, when no number follows it."""
    spans = re.findall(r"\$([^$]{1,2000})\$|\\\((.{1,2000}?)\\\)", text[-TAIL_CHARS:])
    if not spans or re.search(r"\d", re.split(r"\$|\\\)", text)[-1]):
        return None
    return (spans[-1][0] or spans[-1][1]).strip() or None
