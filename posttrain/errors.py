"""The errors a user can act on. Everything else propagates as it is."""

from __future__ import annotations

# Bad input found before any model was loaded. The command line prints it and exits with 2.
from rewards import UsageError

__all__ = ["RunError", "UsageError"]


class RunError(RuntimeError):
    """A run had to stop. The message says what happened and how to go on. Exit code 1."""
