"""Why a generator can't go on: ``UsageError`` for bad input, ``GenerationError`` in mid run."""

from __future__ import annotations

from rewards import UsageError, did_you_mean

__all__ = ["GenerationError", "Unanswered", "UsageError", "did_you_mean"]


class GenerationError(RuntimeError):
    """The run had to stop. What was finished is on disk; the same call goes on from there."""


class Unanswered(Exception):
    """One request got no usable reply: its item fails and goes to the retry file."""
