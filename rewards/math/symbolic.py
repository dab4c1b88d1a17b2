"""Decides, in a worker process, what exact arithmetic leaves open: by value, then by sympy.

``decide`` runs in a child of ``rewards.workers`` and nowhere else. First the comparison is made
again with numeric values to 60 digits (``rewards.math.probe``); what has no such values
(integrals, limits, derivatives, notation that our grammar lacks) goes through
latex2sympy2-extended to math-verify, with its own time-outs off: they are ``signal.alarm``, and
the worker is killed from outside anyway. Its plain expression parser, which evaluates Python, is
never used, and no text with a name that is no known command reaches it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.math import probe
from rewards.math.grammar import parse
from rewards.math.limits import TooLarge, Unreadable, names
from rewards.math.structure import Comparison
from rewards.math.tokens import tokenise

Node = tuple[Any, ...]
MAX_SYMPY_CHARS = 400
MAX_OPERATORS = 3
_OPERATOR = re.compile(r"\\(?:int|lim|partial|prime)(?![a-z])|'")  # what our grammar lacks
_BIG = re.compile(
    r"\d{7,}|\^\s*\{?\s*-?\d{3,}|!|\\(?:prod|sum|binom)(?![a-z])|\^\s*(?:\{[^{}^]{0,40}|[\w.]+\s*)\^"
)
_TO_SYMPY = names(
    "frac sqrt pi cdot times int lim sin cos tan sec csc cot arcsin arccos arctan ln log exp "
    "infty to partial mathrm prime le ge ne pm alpha beta gamma theta lambda mu varphi sigma"
)


def decide(pair: tuple[str, str]) -> tuple[bool | None, str]:
    """(verdict, tier) for two answers. Raises TooLarge for a value beyond its bound."""
    gold_text, pred_text = pair
    comparison = Comparison(_strong)
    try:
        verdict = comparison.equal(parse(gold_text), parse(pred_text))
        tier = comparison.tier
    except TooLarge:
        raise
    except Unreadable:
        verdict, tier = None, "sympy"
    if verdict is None:
        return _by_sympy(gold_text, pred_text), "sympy"
    return verdict, tier


def _strong(question: str, a: Node, b: Node) -> bool | None:
    if question == "equal":
        return probe.equal(a, b)
    if question == "rounds":
        return probe.rounds_to(a, b[1], Fraction(1, 10 ** b[2]))
    return probe.multiple(a, b, 1 if question == "multiple" else -1)


def is_for_sympy(gold: str, pred: str) -> bool:
    """Whether one of the two has an integral, a limit or a derivative, and both are bounded."""
    if not (_OPERATOR.search(gold) or _OPERATOR.search(pred)):
        return False
    return may_reach_sympy(gold) and may_reach_sympy(pred)


def may_reach_sympy(text: str) -> bool:
    """Whether a text is short, made of known commands, and without towers or huge numbers."""
    if len(text) > MAX_SYMPY_CHARS or _BIG.search(text):
        return False
    if len(_OPERATOR.findall(text)) > MAX_OPERATORS:
        return False
    try:
        tokens = tokenise(text)
    except Unreadable:
        return False
    for token in tokens:
        differential = token.kind == "word" and re.fullmatch("d[a-z]", token.value)
        if token.kind in ("text", "word", "begin", "end") and not differential:
            return False
        if token.kind == "cmd" and token.value not in _TO_SYMPY:
            return False
        if token.kind == "op" and token.value not in {*"+-*/^_=<>()[]{}|,'.!"}:
            return False
    return True


def _by_sympy(gold: str, pred: str) -> bool | None:
    """math-verify on two texts; None when it cannot read one of them."""
    if not is_for_sympy(gold, pred):
        return None
    from math_verify import LatexExtractionConfig, verify
    from math_verify import parse as read

    def reading(text: str) -> Any:
        return read(
            f"${text}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )

    mine, theirs = reading(gold), reading(pred)
    if not mine or not theirs:
        return None
    return bool(verify(mine, theirs, timeout_seconds=None))


def warm_up() -> None:
    """Imports that every child would otherwise do on its own; the keeper does them once."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        import math_verify  # noqa: F401
        import mpmath  # noqa: F401
    except ImportError:
        return
    _by_sympy("x", "y'")
