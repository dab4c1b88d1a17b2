"""A training run of a second or two: what the tests of training share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.data.shards import Shards
from pretrain.models import Shape, build
from pretrain.training.job import train_model
from tests.pretrain.token_corpus import make_shards

WEIGHTS = "model.safetensors"
SHAPE = {"hidden_size": 32, "layers": 2, "mlp_size": 64, "heads": 2, "kv_heads": 2, "head_dim": 32}


def corpus(folder: Path) -> Shards:
    return make_shards(folder, {"en/web": 6_000, "de/web": 2_400})


def config(shards: Shards, out: Path, *, steps: int = 12, **changes: Any) -> dict[str, Any]:
    """4 rows of 48 tokens a step; ``changes`` are section__key=value."""
    rows = {"tokens": steps * 4 * 48, "rows": 4, "length": 48}
    tree: dict[str, Any] = {
        "out": str(out),
        "data": {"shards": [str(shards.folder)], "phases": [rows]},
        "shape": dict(SHAPE),
        "dtype": "float32",
        "threads": 1,
        "optimizer": {"rate": 5e-3},
        "schedule": {"warmup": 2},
        "checkpoint": {"every": 4},
        "spikes": {"repeats": 3},
        "report": {"peak_tflops": 1.0, "every": 4},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    return tree


def trained(shards: Shards, out: Path, **changes: Any) -> Path:
    return train_model(config(shards, out, **changes))


def mixture(shards: Shards, out: Path, weight: float) -> Path:
    """A checkpoint whose routers send nearly everything to the first two of eight experts."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(shards.folder / "tokenizer")
    shape = Shape(
        *("qwen3_moe", len(tokenizer), 32, 2, 2, 2, 32, 64),
        max_length=64,
        experts=8,
        experts_per_token=2,
        expert_ffn=16,
        balance_weight=weight,
    )
    model: Any = build(shape, tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1.0  # what all tokens have in common
        for layer in model.model.layers:
            layer.mlp.gate.weight[:2] += 0.05
            layer.mlp.gate.weight[2:] -= 0.05
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The records of steps, in the file's order."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "grad_norm" in (record := json.loads(line))]


def as_command(tree: dict[str, Any], folder: Path) -> list[str]:
    """A file with the data, and everything else as overrides."""
    (folder / "config.toml").write_text(
        f"[data]\nshards = {json.dumps(tree['data']['shards'])}\n[[data.phases]]\n"
        + "\n".join(f"{name} = {value}" for name, value in tree["data"]["phases"][0].items())
    )
    said = [str(folder / "config.toml")]
    for section, values in tree.items():
        if section == "data":
            continue
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        said += [f"{section}.{k}={json.dumps(v)}".replace(".=", "=") for k, v in pairs]
    return said


def wait_for_steps(out: Path, n: int, deadline_s: float = 240.0) -> None:
    until = time.monotonic() + deadline_s
    while not (out / "metrics.jsonl").exists() or len(steps_of(out)) < n:
        assert time.monotonic() < until, f"{out} did not get to step {n}"
        time.sleep(0.005)
