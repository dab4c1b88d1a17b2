"""A model that finds needles in 256 tokens: what is left of it in 1,024, by method.

    python scripts/bench/needles.py runs/needles

The needle is a number of two digits, told once among words that repeat and asked for at the end; a
document is one such task with its answer, 12 tokens to a window long. A small model learns it from
nothing with ``pretrain train``, is extended by each method, and trained a little on documents up to
the new window. Needles found stand after each, 80 at each length. ``none`` is the control: the
longer window is in the config and nothing rescaled.
"""

import gzip
import json
import math
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretrain.context import needle_accuracy
from pretrain.context.extend import extend
from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.models import Shape, build
from pretrain.tokenizer import train_tokenizer
from pretrain.training import train_model

SHORT, LONG = 256, 1024  # tokens
LENGTHS = (128, 256, 512, 1024)
STEP = 4096  # tokens
TEXT = (
    "the grass is green and the sky is blue and the sun is yellow so here we go and there and back "
    "again"
)
WORDS = TEXT.split()
AROUND = 9  # tokens of needle and question


def task(length: int, depth: float, rng: random.Random) -> tuple[str, str]:
    """Context and answer; every word is a token."""
    number = f"{rng.randrange(10)} {rng.randrange(10)}"
    n = max(0, length - AROUND)
    words = [WORDS[i % len(WORDS)] for i in range(n)]
    words.insert(round(depth * n), f"key {number} .")
    return " ".join([*words, "key ?"]), f" {number}"


def main(out: Path) -> None:
    tokenizer = train_tokenizer(
        [task(40, 0.5, random.Random(n))[0] for n in range(50)], vocab_size=320, max_length=4096
    )
    model = untrained(tokenizer, out / "untrained")
    model = trained(out / "first", model, SHORT, steps=500, rate=3e-3, seed=0)
    model = trained(out / "short", model, SHORT, steps=800, rate=3e-3, seed=1)
    report(f"trained on rows of {SHORT}", model)
    for method in ("none", "yarn", "abf"):
        start = out / f"{method}-start"
        extended(model, start, method)
        report(f"{method}, no training", start)
        done = trained(out / method, start, LONG, steps=60, rate=1e-3, seed=2)
        report(f"{method}, trained on rows of {LONG}", done)


def untrained(tokenizer: Any, out: Path) -> Path:
    """127,424 weights. The base is so small that even the slowest pair turns a fifth round within
    the window, as it does for real bases and real windows."""
    sizes: dict[str, Any] = {
        "width": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 32,
        "ffn": 192,
    }
    model: Any = build(Shape("qwen3", len(tokenizer), max_length=SHORT, **sizes), tokenizer)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 300.0}
    with torch.no_grad():  # a deviation of 0.02 is for widths of thousands
        for weight in model.parameters():
            weight.mul_(5.0 if weight.ndim > 1 else 1.0)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def trained(out: Path, model: Path, window: int, *, steps: int, rate: float, seed: int) -> Path:
    phase = {"tokens": steps * STEP, "rows": STEP // window, "length": window}
    tree: dict[str, Any] = {
        "out": str(out),
        "model": str(model),
        "dtype": "float32",
        "data": {"shards": [str(tasks(out, model, window, steps * STEP, seed))], "phases": [phase]},
        "optimizer": {"rate": rate, "weight_decay": 0.01},
        "schedule": {"warmup": 20, "decay": 0.3},
        "report": {"every": 100},
    }
    return train_model(tree)


def tasks(out: Path, tokenizer: Path, longest: int, n_tokens: int, seed: int) -> Path:
    """Shards of as many tokens as are trained on: no needle is seen twice."""
    folder, shards, rng = out / "tasks", out / "shards", random.Random(seed)
    if shards.exists():
        return shards
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "00000.jsonl.gz", "wt") as file:
        while n_tokens > 0:
            length = round(math.exp(rng.uniform(math.log(12), math.log(longest))))
            text = "".join(task(length, rng.random(), rng))
            file.write(json.dumps({"text": text, "id": str(n_tokens), "metadata": {}}) + "\n")
            n_tokens -= length
    write_shards(folder, shards, ShardSettings(tokenizer=str(tokenizer)))
    return shards


def extended(model: Path, out: Path, method: str) -> None:
    if out.exists():
        return
    if method != "none":
        extend(model, out, LONG, method=method)
        return
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    config["max_position_embeddings"] = LONG
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def report(name: str, folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def needle(length: int, depth: float, rng: random.Random) -> tuple[list[int], list[int]]:
        context, answer = task(length, depth, rng)
        return tokenizer(context)["input_ids"], tokenizer(answer)["input_ids"]

    for length in LENGTHS:
        found = needle_accuracy(model, needle, length, samples=16, seed=1)
        by_depth = " ".join(f"{depth:g}: {share:.0%}" for depth, share in found.items())
        print(f"{name}: {length} tokens: {sum(found.values()) / len(found):.0%} ({by_depth})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
