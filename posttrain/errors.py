"""The errors a user can act on. Everything else propagates as it is."""

from __future__ import annotations

# Bad input found before any model was loaded. The command line prints it and exits with 2.
from rewards import UsageError

__all__ = ["RunError", "UsageError", "first_error"]


class RunError(RuntimeError):
    """A run had to stop. The message says what happened and how to go on. Exit code 1."""


def first_error(error: BaseException) -> BaseException:
    """The error that started it, where a group of tasks wraps one or several."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
