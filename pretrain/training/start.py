"""Decides what model a run starts from: one in a folder, or a new one of the size asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError
from pretrain.models.count import table
from pretrain.models.dial import shape_for
from pretrain.models.shape import Shape
from pretrain.tokenizer_checks import check_belongs
from pretrain.training.settings import TrainConfig


def model_config(config: TrainConfig, tokenizer: Any) -> Any:
    """What the model will be; inside ``torch.device("meta")`` no memory is taken."""
    from transformers import AutoConfig

    if not config.model:
        return _new(config, tokenizer).config
    try:
        found = AutoConfig.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        raise UsageError(f"model = {config.model!r} can't be loaded: {error}") from error
    if hasattr(found, "vision_config"):
        raise UsageError(f"model = {config.model!r} sees: `pretrain vision` trains such models")
    return found


def start_model(config: TrainConfig, tokenizer: Any) -> Any:
    """The model itself, in float32."""
    from transformers import AutoModelForCausalLM

    if not config.model:
        return _new(config, tokenizer)
    return AutoModelForCausalLM.from_pretrained(config.model, dtype="float32")


def check_tokenizer(config: TrainConfig, tokenizer: Path) -> None:
    """Raises UsageError where the data were made with another tokenizer than the model's."""
    if config.model and Path(config.model).is_dir():
        check_belongs(config.model, tokenizer)


def size_table(config: TrainConfig, tokenizer: Any) -> str:
    """Parameters by part and FLOPs per token of a new model; "" for one from a folder."""
    return "" if config.model else table(_shape(config, tokenizer))


def _new(config: TrainConfig, tokenizer: Any) -> Any:
    from pretrain.model import new_model, stop_at
    from pretrain.models.build import build

    if config.params:
        return stop_at(build(_shape(config, tokenizer), tokenizer, seed=config.seed), tokenizer)
    shape = replace(config.shape, max_length=max(config.shape.max_length, _longest(config)))
    return new_model(shape, tokenizer, config.seed)


def _shape(config: TrainConfig, tokenizer: Any) -> Shape:
    vocabulary = -(-len(tokenizer) // 64) * 64  # keeps the last matrix aligned
    s, longest = config.shape, max(config.shape.max_length, _longest(config))
    if config.params:
        fixed = {"vocab_size": vocabulary, "max_length": longest}
        return shape_for(config.params, architecture=config.architecture, **fixed)
    return Shape(
        *("qwen3", vocabulary, s.hidden_size, s.layers, s.heads, s.kv_heads, s.head_dim),
        ffn=s.mlp_size,
        max_length=longest,
        tied=s.tie_embeddings,
    )


def _longest(config: TrainConfig) -> int:
    return max(phase.length for phase in config.data.phases)
