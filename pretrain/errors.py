"""Decides which errors are the user's to mend: bad input, and work that had to stop."""

from __future__ import annotations


class UsageError(ValueError):
    """Bad input: says what was wrong, where, and what would be right. Nothing was written."""


class RunError(RuntimeError):
    """Long work had to stop: says why, what is kept, and how to go on."""
