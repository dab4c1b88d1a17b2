"""What several packages' tests share, and which of them run in the same process of two."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# A test case that meets a busy machine is no failure; the tests have deadlines of their own.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Session fixtures that are dear to set up: files that name one run in the same process.
_DEAR = {"vllm_engine": "vllm", "serve": "serving"}


@cache
def group_of(file: str) -> str:
    """What a test file runs together with, one after the other, where there are two processes."""
    if "rewards" in Path(file).parts:  # they count the machine's mounts and processes
        return "rewards"
    words = set(re.findall(r"\w+", (ROOT / file).read_text()))
    return next((group for name, group in _DEAR.items() if name in words), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole groups go to a process. The plugin's own ``loadgroup`` marks them in the tests' names,
    which pytest 9.1 no longer lets it change: each test then went its own way."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0])

    return Groups(config, log)


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
