"""Decides which transformers classes a shape becomes. The seed decides every weight.

The classes and configs are transformers' own, so that the folder is an ordinary one which vLLM
loads unchanged. What reads a picture is in ``vision``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError
from pretrain.models.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def build(
    shape: Shape, tokenizer: PreTrainedTokenizerBase | None = None, *, seed: int = 0
) -> PreTrainedModel:
    """An untrained float32 model. ``tokenizer`` gives the ids of special tokens, which for a
    model that sees must hold ``<image>``. Raises UsageError where it is larger than the shape.

    Normal weights of deviation 0.02, gains 1, biases 0: transformers' initialisation. torch's
    global generator is left as it was.
    """
    import torch
    import transformers

    config = model_config(shape, tokenizer)
    name = {
        "qwen3": "Qwen3ForCausalLM",
        "llama": "LlamaForCausalLM",
        "qwen3_moe": "Qwen3MoeForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "llava": "LlavaNextForConditionalGeneration",
    }[shape.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, name)(config)
    return model


def model_config(
    shape: Shape, tokenizer: PreTrainedTokenizerBase | None = None
) -> PretrainedConfig:
    """The transformers config of a shape."""
    if tokenizer is not None and len(tokenizer) > shape.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model only {shape.vocab_size:,} "
            "rows for them: give the shape a larger vocab_size"
        )
    special = {
        "bos_token_id": tokenizer.bos_token_id if tokenizer is not None else None,
        "eos_token_id": tokenizer.eos_token_id if tokenizer is not None else None,
        "pad_token_id": tokenizer.pad_token_id if tokenizer is not None else None,
    }
    if shape.vision:
        from pretrain.models.vision import vision_language_config

        return vision_language_config(shape, _language_config(shape, special), tokenizer)
    return _language_config(shape, special)


def _language_config(shape: Shape, special: dict[str, Any]) -> PretrainedConfig:
    from transformers import LlamaConfig, MixtralConfig, Qwen3Config, Qwen3MoeConfig

    shared: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_length,
        "tie_word_embeddings": shape.tied,
        **special,
    }
    experts = {
        "num_experts_per_tok": shape.experts_per_token,
        "router_aux_loss_coef": shape.balance_weight,
    }
    match shape.architecture:
        case "llama":
            return LlamaConfig(intermediate_size=shape.ffn, **shared)
        case "qwen3_moe":
            return Qwen3MoeConfig(
                num_experts=shape.experts,
                moe_intermediate_size=shape.expert_ffn,
                intermediate_size=shape.ffn,
                norm_topk_prob=True,  # the chosen weights add up to 1, as in Qwen3's own models
                **experts,
                **shared,
            )
        case "mixtral":
            return MixtralConfig(
                num_local_experts=shape.experts,
                intermediate_size=shape.expert_ffn,
                **experts,
                **shared,
            )
        case _:
            return Qwen3Config(intermediate_size=shape.ffn, **shared)
