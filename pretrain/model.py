"""Decides the shape of a base model: a Qwen3 of the given size, untrained.

Qwen3 is grouped-query attention, rotary positions, RMSNorm on queries and keys, and a gated MLP:
an architecture every engine loads unchanged. vLLM's CPU attention wants ``head_dim`` to be a
multiple of 32, so that is checked here and not found out later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

Model = TypeVar("Model", bound="PreTrainedModel")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Size of the network. The defaults are 1.4 M parameters."""

    hidden_size: int = 192
    layers: int = 3
    mlp_size: int = 576
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    max_length: int = 512
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.layers, self.mlp_size, self.heads, self.kv_heads) < 1:
            raise ValueError("every size of the model must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.head_dim < 32 or self.head_dim % 32:
            raise ValueError(f"head_dim must be a multiple of 32, not {self.head_dim}")


def new_model(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Qwen3ForCausalLM:
    """A freshly initialised float32 model for this tokenizer. The seed decides every weight."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    end = tokenizer.eos_token_id
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,  # a multiple of 64 keeps the last matrix aligned
        hidden_size=settings.hidden_size,
        intermediate_size=settings.mlp_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=settings.tie_embeddings,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return stop_at(model, tokenizer)


def stop_at(model: Model, tokenizer: PreTrainedTokenizerBase) -> Model:
    """Stop at the end of a turn as well as at the end of a text: a base is asked for both."""
    end, turn_end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    stops = [end] if turn_end in (None, tokenizer.unk_token_id) else [end, turn_end]
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
