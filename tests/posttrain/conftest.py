"""One real vLLM server on a tiny random model, shared by all tests of the session.

Its start takes half a minute, so it is paid once. The engine lives in one event loop, ``loop``;
tests run their coroutines there. A test that breaks the server leaves it recovered.
"""

import asyncio
import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.config import make_config
from posttrain.types import Request, Sampling, Snapshot

END = 3
VOCAB = 500  # no multiple of what vLLM pads to, on purpose


@pytest.fixture(scope="session")
def vllm_checkpoint(tmp_path_factory):
    """A Qwen3 of 0.7 M weights with tied embeddings, without a tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,  # spread the distribution, so that samples differ
        eos_token_id=END,
    )
    path = tmp_path_factory.mktemp("vllm-model")
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def vllm_config(vllm_checkpoint):
    """Makes the config of a small engine; keyword arguments go to the rollout section."""

    def make(max_probe_gap=0.05, **rollout):
        defaults = {"engine": "vllm", "threads": 1, "kv_cache_gib": 0.1, "max_concurrency": 64}
        return make_config(
            {
                "model": str(vllm_checkpoint),
                "env": "unused",
                "rollout": defaults | rollout,
                "sync": {"max_probe_gap": max_probe_gap, "timeout_s": 60.0},
            }
        )

    return make


@pytest.fixture(scope="session")
def loop():
    """``loop(coroutine)`` runs it in the one event loop that all engines here live in."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def vllm_engine(vllm_config, loop, tmp_path_factory):
    """The shared engine: one real server. Its weights are whatever the last test synced."""
    pytest.importorskip("vllm")
    from posttrain.engines.vllm_engine import VllmEngine

    engine = VllmEngine(vllm_config(), tmp_path_factory.mktemp("logs"))
    loop(engine.start())
    yield engine
    loop(engine.close())


@pytest.fixture(scope="session")
def learner(vllm_checkpoint, tmp_path_factory):
    """Stands in for a learner: ``move``, ``publish``, ``logprobs`` on a transformers model."""
    return _Learner(vllm_checkpoint, tmp_path_factory.mktemp("snapshots"))


@pytest.fixture
def ask():
    """Makes a Request from a name and anything that should differ from the usual."""

    def make(name, *, prompt=(5, 6, 7, 8), seed=0, max_tokens=16, temperature=1.0, stop=()):
        sampling = Sampling(max_tokens, temperature, tuple(stop))
        return Request(str(name), np.asarray(prompt, dtype=np.int64), sampling, seed)

    return make


class _Learner:
    def __init__(self, checkpoint, folder):
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        self._folder = folder
        self._versions = itertools.count(1)
        self._noise = torch.Generator().manual_seed(0)
        self.probe_ids = np.random.default_rng(0).integers(4, VOCAB, 128)

    @torch.no_grad()
    def move(self, relative=0.05):
        """Move every tensor by seeded noise, as the start-up canary does."""
        for parameter in self._model.parameters():
            size = parameter.float().pow(2).mean().sqrt()
            noise = torch.randn(parameter.shape, generator=self._noise)
            parameter.add_((noise * size * relative).to(parameter.dtype))

    def publish(self, version=None, *, leave_out=()):
        """Write the weights, as the learner does; ``leave_out`` names tensors to forget."""
        version = next(self._versions) if version is None else version
        tensors = {
            name: parameter.detach().clone()
            for name, parameter in self._model.named_parameters()
            if name not in leave_out
        }
        path = self._folder / f"{version}.safetensors"
        save_file(tensors, path)
        return Snapshot(version, path, self.probe_ids, self.logprobs(self.probe_ids))

    @contextlib.contextmanager
    def at(self, snapshot):
        """For a ``with`` block, the weights of an earlier snapshot."""
        now = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self._load(load_file(snapshot.path))
        try:
            yield
        finally:
            self._load(now)

    @torch.no_grad()
    def _load(self, tensors):
        for name, parameter in self._model.named_parameters():
            parameter.copy_(tensors[name])

    @torch.inference_mode()
    def logprobs(self, token_ids, temperature=1.0):
        ids = torch.as_tensor(np.asarray(token_ids))
        logits = self._model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        chosen = torch.log_softmax(logits / temperature, -1).gather(-1, ids[1:, None])
        return chosen[:, 0].numpy()

    @torch.inference_mode()
    def likeliest(self, prompt):
        ids = torch.as_tensor(np.asarray(prompt))
        return int(self._model(input_ids=ids[None], use_cache=False).logits[0, -1].argmax())

    def gap(self, request, completion):
        """Mean |engine - learner| over a completion's own tokens."""
        ids = np.concatenate([request.prompt_ids, completion.token_ids])
        own = self.logprobs(ids, request.sampling.temperature)[len(request.prompt_ids) - 1 :]
        return SimpleNamespace(
            mean=float(np.abs(own - completion.logprobs).mean()), n=len(completion)
        )
