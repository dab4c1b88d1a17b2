"""A mixture of experts in a real run: balance is learnt, load is told, death is an alarm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.data.shards import Shards
from pretrain.models import Shape, build
from pretrain.training import loop
from pretrain.training.job import train_model
from tests.pretrain.token_corpus import tokenizer_folder, write_documents
from tests.pretrain.training.small_run import config, mixture, steps_of, trained

STEPS = 100


def used(records: list[dict[str, Any]], layer: int) -> int:
    """Experts that got at least a quarter of an even share over a run's steps.

    All tokens are much alike here, so at any one step most go to the same two.
    """
    loads = torch.tensor([record["expert_load"][layer] for record in records])
    return int((loads.mean(0) > 0.25 / 8).sum())


def test_the_load_is_told_and_the_balance_evens_it(shards: Shards, tmp_path: Path) -> None:
    runs = {}
    for weight in (0.0, 1.0):
        model = mixture(shards, tmp_path / f"model{weight}", weight)
        out = tmp_path / f"run{weight}"
        trained(shards, out, model=str(model), shape={}, steps=40)
        runs[weight] = steps_of(out)
        for record in runs[weight]:
            assert [sum(one) for one in record["expert_load"]] == pytest.approx([1, 1], abs=1e-3)
    assert runs[0.0][0]["expert_load"] == runs[1.0][0]["expert_load"]
    # The loss that is told is the tokens' own, without the balance.
    assert runs[0.0][0]["loss"] == pytest.approx(runs[1.0][0]["loss"], rel=1e-6)
    for layer in range(2):
        assert used(runs[0.0], layer) <= 4 < used(runs[1.0], layer)


def test_a_dead_expert_is_an_alarm(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(loop, "DEAD_AFTER", 5)
    model = mixture(shards, tmp_path / "model", 0.0)
    trained(shards, tmp_path / "run", model=str(model), shape={}, steps=8)
    said = capsys.readouterr().err
    assert said.count("step 5: layer 0: expert 7 is not used") == 1  # not again at each step
    assert "step 5: layer 1: the router chooses few experts" in said


# the sum of two numbers modulo 8, which no sum of two embeddings can tell

MODULUS = 8
SUMS = [(a, b, (a + b) % MODULUS) for a in range(MODULUS) for b in range(MODULUS)]
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Documents such as d6b: 3 and 6 make 1."""
    folder = tmp_path_factory.mktemp("sums")
    texts = [f"{LETTERS[a]}{b}{LETTERS[c]}" for a, b, c in SUMS]
    documents = [{"text": text, "language": "en", "domain": "sums"} for text in texts * 20]
    random.Random(0).shuffle(documents)
    write_documents(folder / "documents", [documents])
    settings = ShardSettings(tokenizer=str(tokenizer_folder()))
    return write_shards(folder / "documents", folder / "shards", settings)


def accuracy(model: Any, tokenizer: Any) -> float:
    questions = torch.tensor([tokenizer(f"{LETTERS[a]}{b}")["input_ids"] for a, b, _ in SUMS])
    answers = torch.tensor([tokenizer(LETTERS[c])["input_ids"][0] for _, _, c in SUMS])
    with torch.no_grad():
        logits = model(input_ids=questions).logits[:, -1]
    return float((logits.argmax(-1) == answers).float().mean())


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_a_trained_mixture_can_nothing_without_its_experts(
    sums: Shards, tmp_path: Path, architecture: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(sums.folder / "tokenizer")
    sizes = {"width": 64, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 32, "ffn": 64}
    experts = {"experts": 8, "experts_per_token": 2, "expert_ffn": 64, "balance_weight": 0.05}
    shape = Shape(architecture, len(tokenizer), max_length=64, tied=False, **sizes, **experts)
    start: Any = build(shape, tokenizer)
    with torch.no_grad():  # 0.02 is for widths of thousands
        for weight in start.parameters():
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
    start.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tree = config(sums, tmp_path / "run", steps=STEPS, model=str(tmp_path / "model"), shape={})
    tree["data"]["phases"] = [{"tokens": STEPS * 16 * 48, "rows": 16, "length": 48}]
    tree["optimizer"]["weight_decay"] = 0.0
    tree["checkpoint"] = {"every": 1000}
    model: Any = AutoModelForCausalLM.from_pretrained(train_model(tree))
    assert accuracy(model, tokenizer) >= 0.95
    load = steps_of(tmp_path / "run")[-1]["expert_load"][0]
    assert min(load) > 0.2 / 8
    down = model.model.layers[0].mlp.experts.down_proj
    kept = down.data.clone()
    down.data[load.index(max(load))] = 0.0
    assert accuracy(model, tokenizer) <= 0.97  # some sums are that expert's
    down.data.zero_()
    assert accuracy(model, tokenizer) <= 0.3  # 1 in 8 is chance
    down.data.copy_(kept)
    assert accuracy(model, tokenizer) >= 0.95
