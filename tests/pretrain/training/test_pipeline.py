"""Where a model is cut into stages, and which are refused; its runs are in test_two_ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3MoeConfig,
)

from pretrain.errors import UsageError
from pretrain.training.engine import check_ranks
from pretrain.training.pipeline import check_division, cuts_of
from pretrain.training.settings import ParallelSettings

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "head_dim": 8,
}


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("layers", "head", "stages", "cuts"),
    [
        (4, 0.0, 2, [0, 2, 4]),
        (4, 2.0, 2, [0, 3, 4]),  # 3 layers, and a layer with a head of two
        (4, 50.0, 2, [0, 3, 4]),  # every stage has a layer
        (4, 50.0, 4, [0, 1, 2, 3, 4]),
        (32, 1.0, 4, [0, 8, 16, 25, 32]),
        (5, 0.5, 3, [0, 2, 4, 5]),
    ],
)
def test_the_head_counts_as_layers(layers: int, head: float, stages: int, cuts: list[int]) -> None:
    assert cuts_of(layers, head, stages) == cuts


def test_stages_give_what_the_model_gives() -> None:
    model = model_of(LlamaConfig(**TINY, tie_word_embeddings=False))
    assert check_division(model, 2) == [0, 2, 4]
    assert check_division(model, 4) == [0, 1, 2, 3, 4]
    forward = model.model.forward

    def shifted(**told: Any) -> Any:
        found = forward(**told)
        found.last_hidden_state = found.last_hidden_state + 1
        return found

    model.model.forward = shifted  # a model that does more than its layers
    with pytest.raises(UsageError, match="does more with its layers"):
        check_division(model, 2)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2Config(vocab_size=64, n_embd=16, n_layer=4, n_head=2), "are not known"),
        (CohereConfig(**{k: v for k, v in TINY.items() if k != "head_dim"}), "logit_scale"),
    ],
)
def test_models_that_stages_cannot_do(config: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_division(model_of(config), 2)


@pytest.mark.parametrize(
    ("config", "stages", "ranks", "why"),
    [
        (LlamaConfig(**TINY), 5, 10, "the model has 4 layers"),
        (LlamaConfig(**TINY), 2, 3, "3 ranks can't be divided into groups of 2"),
        (Qwen3MoeConfig(**TINY, num_experts=4, num_experts_per_tok=2), 2, 2, "balanced over all"),
    ],
)
def test_what_is_refused_before_the_model_is_built(
    config: Any, stages: int, ranks: int, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        check_ranks(ranks, ParallelSettings(pipeline=stages), config)


def test_an_embedding_that_scales_is_a_stage_s_too() -> None:
    assert check_division(model_of(GemmaConfig(**TINY)), 2) == [0, 2, 4]
