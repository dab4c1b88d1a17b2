"""What several packages' tests share."""

import pytest
import torch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random Qwen3 of some ten thousand weights with a ChatML tokenizer, which vLLM takes too."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pretrain.tokenizer import train_tokenizer

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["what is 1 + 2 ? 3"] * 50, vocab_size=300)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,  # spread the distribution, so that samples differ
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
