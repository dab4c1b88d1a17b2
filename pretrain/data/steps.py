"""Decides what a step over documents is: one method, which keeps, changes or drops.

A document is datatrove's own ``Document`` (``text``, ``id``, ``metadata``). A step sees one at a
time and remembers nothing between them: what needs to compare documents (duplicates, mixing) is a
stage over files, not a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datatrove.data import Document


class Step(Protocol):
    """One rule, or a group of rules that share their work."""

    name: str

    def check(self, document: Document) -> str | None:
        """None keeps the document, whose text and metadata the step may have changed; a string
        is the reason for dropping it: short, from a fixed set, as it is counted by reason."""
        ...
