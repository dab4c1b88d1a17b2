"""Training of a base model on DeepSpeed: from a stream of batches to a Hugging Face folder.

``settings`` says what can be asked for, ``job`` joins the parts, ``loop`` is the loop; ``engine``
is the only module that imports deepspeed. Importing this package loads neither torch nor deepspeed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train_model(config: Any, *overrides: str) -> Path:
    """Train a base model; see ``job.train_model``, which is imported when it is called."""
    from pretrain.training import job

    return job.train_model(config, *overrides)
