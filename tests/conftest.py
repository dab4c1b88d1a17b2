"""What several packages' tests share, and which of them run in the same process of two."""

import pytest
import torch
from hypothesis import settings

# A test case that meets a busy machine is no failure; the tests have deadlines of their own.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Session fixtures that are dear to set up: all tests that use one run in the same process.
_DEAR = {
    **dict.fromkeys(("vllm_engine", "learner"), "vllm"),
    "serve": "serving",
}


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the groups
def pytest_collection_modifyitems(items):
    """With ``-n 2 --dist loadgroup`` a file stays together, and so do those that share a server."""
    for item in items:
        shared = next((group for name, group in _DEAR.items() if name in item.fixturenames), "")
        if "rewards" in item.path.parts:  # they count the machine's mounts and processes
            shared = "rewards"
        item.add_marker(pytest.mark.xdist_group(shared or str(item.path)))


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
