"""Training of a model that sees, in LLaVA's two stages: from rows with pictures to folders.

``settings`` says what can be asked for, ``rows`` what is learnt of a picture and its text,
``stage`` is one training on transformers' Trainer, ``job`` joins them. Importing this package does
not load torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train_vision(config: Any, *overrides: str) -> Path:
    """Train a model that sees; see ``job.train_vision``, which is imported when it is called."""
    from pretrain.vision import job

    return job.train_vision(config, *overrides)
