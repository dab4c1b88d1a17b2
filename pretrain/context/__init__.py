"""A longer context: the rotary embedding rescaled in the config, and what that does, measured."""

from __future__ import annotations

from pretrain.context.measure import (
    Needle,
    document_perplexity,
    needle_accuracy,
    passkey,
)
from pretrain.context.rope import METHODS, extend_config, window

__all__ = [
    "METHODS",
    "Needle",
    "document_perplexity",
    "extend_config",
    "needle_accuracy",
    "passkey",
    "window",
]
