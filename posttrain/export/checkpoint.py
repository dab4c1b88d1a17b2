"""Loads checkpoints to be handed on, and decides what an ordinary one holds.

Weights in shards of a bounded size, the tokenizer with its chat template, and generation defaults
that name the tokens which end an answer: an engine that does not read templates stops there too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.chat import end_ids
from posttrain.errors import UsageError
from posttrain.preflight import read_config

_LONGEST_WINDOW = 32768  # tokens, where a config names none
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(path: str | Path, dtype: str | torch.dtype = "auto") -> Any:
    """The model of a checkpoint, for inference, on the GPU where there is one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def dtype_of(checkpoint: str | Path) -> str:
    """The precision the weights are kept in, as the config says; float32 where it does not."""
    found = read_config(str(checkpoint)).get_text_config().dtype
    name = str(found).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def window_of(config: Any) -> int:
    """Tokens that a model sees at once, of its config."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", _LONGEST_WINDOW))


def load_tokenizer(path: str | Path) -> Any:
    """Raises UsageError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"the tokenizer of {path} can't be loaded: {error}") from error


def save(model: Any, tokenizer: Any, folder: Path, max_shard: str = "5GB") -> None:
    """Write a checkpoint; ``folder`` is not in its place yet (``new_folder``)."""
    config = model.generation_config
    ends = end_ids(tokenizer, config)
    if ends:
        config.eos_token_id = list(ends)
    model.config.use_cache = True  # trainers turn it off, and leave it so
    model.save_pretrained(folder, max_shard_size=max_shard)
    tokenizer.save_pretrained(folder)
