"""Decides which part of a completion is the answer: what stands after the model's thinking.

A completion whose last ``<think>`` is not closed has no answer. With a ``tag`` the answer is what
stands between ``<tag>`` and ``</tag>``, of which there must be exactly one: two are a hedge.
"""

from __future__ import annotations

MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe format


def after_thinking(completion: str) -> str | None:
    """The text after the last ``</think>``, all of it without one; None when still thinking."""
    opened, closed = completion.rfind("<think>"), completion.rfind("</think>")
    if opened > closed:
        return None
    return completion[closed + len("</think>") :] if closed >= 0 else completion


def answer_text(completion: str, tag: str = "") -> str | None:
    """The answer, stripped; None when there is none or it is empty."""
    text = after_thinking(completion)
    if text is not None and tag:
        first, last = f"<{tag}>", f"</{tag}>"
        if text.count(first) != 1 or text.count(last) != 1:
            return None
        before, _, after = text.partition(first)
        text = after.partition(last)[0] if last not in before else None
    return (text or "").strip() or None


def few_marks(text: str) -> str:
    """``text`` without the combining marks that come after ``MAX_MARKS`` others in a row.

    Unicode normalisation sorts marks in quadratic time: 100,000 of them take seconds.
    """
    if text.isascii():
        return text
    import regex

    return str(regex.sub(rf"(\p{{M}}{{{MAX_MARKS}}})\p{{M}}++", r"\1", text))
