"""A reward for the shape of a completion: one thinking section, closed, then an answer.

Right is: nothing but white space, ``<think>``, some thinking, ``</think>``, some answer; each tag
once. With ``answer_tag="answer"`` the answer must in turn be ``<answer>...</answer>``, nothing
around it. ``opened=True`` is for chat templates that end the prompt with ``<think>``: the
completion then starts inside the section and holds no opening tag.
"""

from __future__ import annotations

from rewards.registry import register
from rewards.score import Outcome, Score


@register("format", settings=["thinking_tag", "answer_tag", "opened"])
def format(
    completion: str, thinking_tag: str = "think", answer_tag: str = "", opened: bool = False
) -> Score:
    """1 when the completion has the shape, else 0; ``detail`` says what is amiss. WRONG, never
    UNPARSEABLE: a missing section is what this reward is there to judge.

    Can it be hacked? Easily: one letter of thinking and one of answer have the shape. It says
    nothing about either, so use it as a gate (``combine(..., gates=["format"])``), where it brings
    nothing by itself, rather than as a term that pays for tags.
    """
    amiss = _amiss(completion, thinking_tag, answer_tag, opened)
    if amiss:
        return Score(0.0, Outcome.WRONG, detail=amiss)
    return Score(1.0, Outcome.CORRECT)


def _amiss(completion: str, thinking: str, answer: str, opened: bool) -> str:
    """The first thing that is wrong with the shape; empty when nothing is."""
    text = f"<{thinking}>{completion}" if opened else completion
    inside, after, amiss = _section(text, thinking)
    if amiss:
        return amiss
    if not inside.strip():
        return f"nothing stands in <{thinking}>"
    if answer:
        after, rest, amiss = _section(after, answer)
        if amiss:
            return amiss
        if rest.strip():
            return f"text stands after </{answer}>"
    return "" if after.strip() else "the answer is empty"


def _section(text: str, tag: str) -> tuple[str, str, str]:
    """What stands in a section that ``text`` starts with, what after it, and what is amiss."""
    first, last = f"<{tag}>", f"</{tag}>"
    for mark in (first, last):
        if (n := text.count(mark)) != 1:
            return "", "", f"{mark} is there {n} times, not once"
    if not text.lstrip().startswith(first):
        return "", "", f"text stands before {first}"
    inside, _, after = text.lstrip().removeprefix(first).partition(last)
    return inside, after, ""
