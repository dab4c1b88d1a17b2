"""Rewards that compare the answer's text with a gold text or a pattern.

The answer is what stands after the thinking, or in ``tag`` (``rewards.answer_text``); without one
the sample is UNPARSEABLE, 0. Texts are compared in their normal form: Unicode NFKC, case folded,
runs of white space as one space, without quotes, backticks or asterisks around it and without full
stops, exclamation or question marks at its end: "**Paris.**" is "paris".

A gold answer is text or a number, or a list of them of which any may be met. An empty one is an
error of the data: it is told when the data is loaded, and never equals an empty answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answer_text import answer_text, few_marks
from rewards.registry import register
from rewards.score import Outcome, Score

MAX_CHARS = 100_000  # of a text that is compared; a longer answer is wrong
REGEX_S = 0.5
_AROUND = " \"'`*“”‘’«»„"
_ENDS = ".!?。！？"


def normal(text: str) -> str:
    """The normal form; see the module docstring. It may be 18 times as long as ``text``."""
    text = unicodedata.normalize("NFKC", few_marks(text)).casefold()
    return " ".join(text.split()).lstrip(_AROUND).rstrip(_AROUND + _ENDS)


def gold_texts(answer: Any) -> list[str]:
    """The acceptable answers in normal form. Raises ValueError when one is none."""
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        answer = [answer]
    if not answer:
        raise ValueError("the gold answer is an empty list")
    found = []
    for one in answer:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ValueError(f"the gold answer must be text or a number, got {one!r:.80}")
        text = normal(str(one))
        if not text or len(text) > MAX_CHARS:
            why = "is empty" if not text else f"is longer than {MAX_CHARS} characters"
            raise ValueError(f"the gold answer {one!r:.80} {why}")
        found.append(text)
    return found


def _check_answer(fields: Mapping[str, Any]) -> None:
    if "answer" in fields:
        gold_texts(fields["answer"])


@register("exact", settings=["tag"], check=_check_answer)
def exact(completion: str, answer: Any, tag: str = "") -> Score:
    """1 when the answer equals a gold one in normal form.

    Can it be hacked? Only where the gold answers are guessable: yes or no, a letter, a class name.
    Without ``tag`` the whole answer must be the gold text, so an explanation makes it wrong.
    """
    golds = gold_texts(answer)
    found = _comparable(completion, tag)
    if isinstance(found, Score):
        return found
    if found in golds:
        return Score(1.0, Outcome.CORRECT)
    return Score(0.0, Outcome.WRONG, detail=f"{found[:80]!r} is not {golds[0][:80]!r}")


@register("fuzzy", settings=["tag", "at_least"], check=_check_answer)
def fuzzy(completion: str, answer: Any, tag: str = "", at_least: float = 0.0) -> Score:
    """Likeness to the nearest gold answer, 0 to 1; below ``at_least`` it counts as 0.

    Likeness is 1 - (insertions + deletions) / (length of both), on characters in normal form
    (rapidfuzz's ``ratio``); CORRECT means 1.

    Can it be hacked? Yes: two unrelated sentences of one language are about 0.4 alike, and a right
    sentence with its one decisive word changed is above 0.9. Use it for spelling, transcription or
    quotation, with ``at_least`` near 0.8; not for facts.
    """
    from rapidfuzz import fuzz

    golds = gold_texts(answer)
    found = _comparable(completion, tag)
    if isinstance(found, Score):
        return found
    like = max(fuzz.ratio(found, gold, score_cutoff=100 * at_least) for gold in golds) / 100
    return Score(like, Outcome.CORRECT if found in golds else Outcome.WRONG)


def _check_pattern(fields: Mapping[str, Any]) -> None:
    if "pattern" in fields:
        _compiled(fields["pattern"])


@register("regex", settings=["tag", "whole"], check=_check_pattern)
def regex(completion: str, pattern: str, tag: str = "", whole: bool = False) -> Score:
    """1 when ``pattern`` (of the ``regex`` module, a superset of ``re``) is found in the answer.

    ``whole``: it must match all of it. A search that takes longer than ``REGEX_S`` is TIMEOUT, not
    judged; it runs without the interpreter lock, so nothing else waits for it.

    Can it be hacked? A pattern that is searched for anywhere is met by listing every candidate:
    anchor it, or use ``whole`` or ``tag``. With a pattern that backtracks without bound
    (``(x+x+)+y``) a text can be written that makes it time out, so that a wrong answer is masked
    instead of punished: write patterns without nested repetition, and watch the time-outs.
    """
    compiled = _compiled(pattern)
    found = answer_text(completion, tag)
    if found is None:
        return Score(0.0, Outcome.UNPARSEABLE)
    try:
        search = compiled.fullmatch if whole else compiled.search
        hit = search(found, timeout=REGEX_S, concurrent=True)
    except TimeoutError:
        return Score(None, Outcome.TIMEOUT, detail=f"no match or miss within {REGEX_S:g} s")
    return Score(float(bool(hit)), Outcome.CORRECT if hit else Outcome.WRONG)


def _compiled(pattern: Any) -> Any:
    """The compiled pattern (``regex`` caches it). Raises ValueError."""
    import regex as engine

    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"the pattern must be text, got {pattern!r:.80}")
    try:
        return engine.compile(pattern)
    except engine.error as error:
        raise ValueError(f"the pattern {pattern!r:.80} cannot be compiled: {error}") from error


def _comparable(completion: str, tag: str) -> str | Score:
    """The answer in normal form, or the score when there is none to compare."""
    found = answer_text(completion, tag)
    if found is None:
        return Score(0.0, Outcome.UNPARSEABLE)
    if len(found) > MAX_CHARS or len(found := normal(found)) > MAX_CHARS:
        return Score(0.0, Outcome.WRONG, detail=f"longer than {MAX_CHARS} characters")
    return found
