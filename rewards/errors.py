"""The one error of rewards and envs for input that is wrong before anything has run."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A name, column, file or argument that cannot work; the message says what would.

    ``posttrain`` reports it as bad input (exit code 2) before any model is loaded.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'a' or 'b'?`` or, with nothing close, the known names (the first 12)."""
    names = sorted(known)
    near = get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(name) for name in near) + "?"
    if not names:
        return " None is known."
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f" Known: {shown}."
