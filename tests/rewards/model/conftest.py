"""Tiny random reward models with a spread wide enough that different inputs score differently."""

import pytest
import torch


@pytest.fixture(scope="session")
def tokenizer():
    from pretrain.tokenizer import train_tokenizer

    return train_tokenizer(["what is 1 + 2 ? it is 3 .\n\nso the answer is 3"] * 50, vocab_size=320)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory, tokenizer):
    """``make(name, seed=, kind=, labels=, **config)``: the folder of a random checkpoint."""
    import transformers

    def make(name="rm", *, seed=0, kind="Sequence", labels=1, tok=None, **changes):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp(name) / name
        settings = dict(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.15,
            num_labels=labels,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        config = transformers.Qwen3Config(**(settings | changes))
        model = getattr(transformers, f"Qwen3For{kind}Classification")(config)
        model.save_pretrained(path)
        (tok or tokenizer).save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    return make_checkpoint()
