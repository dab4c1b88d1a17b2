"""From a window of 512 tokens to one of 2,048: what each way to extend keeps, before and after.

    python scripts/pretrain_base.py runs/crawl runs/base
    python scripts/bench/long_text.py runs/base runs/long

Mid-training teaches the base passkeys within its window; then the same model is extended by each
method, and trained as many steps on rows of the new length. After each: needles found, and the
perplexity of long held-out documents by quarter of the window. ``none`` is the control: the longer
window is in the config and nothing rescaled. The same command goes on where it was stopped.
"""

import gzip
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pretrain.context.extend import extend, measure
from pretrain.context.measure import passkey
from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.training import train_model

SHORT, LONG = 512, 2048
METHODS = ("none", "yarn", "abf")
STEP = 4096  # tokens
RATE = 1e-3  # a quarter of the base's peak
SHORTEST = 192  # tokens of a passkey


def main(base: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    documents = [
        text
        for text in held_out(base / "split" / "held-out")
        if len(tokenizer(text)["input_ids"]) >= LONG  # the same ones at every length
    ]
    print(f"{len(documents)} held-out documents of {LONG:,} tokens or more")

    def report(name: str, model: Path) -> None:
        print(name)
        for row in measure(model, (SHORT, 2 * SHORT, LONG), documents=documents, samples=8):
            print(row.line(), flush=True)

    report("the base", base / "run" / "final")
    learnt = trained(base, out / "short", base / "run" / "final", SHORT, steps=300)
    report(f"mid-training on rows of {SHORT}", learnt)
    for method in METHODS:
        start = out / f"{method}-start"
        if not start.exists():
            extended(learnt, start, method)
        report(f"{method}, no training", start)
        done = trained(base, out / method, start, LONG, steps=100)
        report(f"{method}, trained on rows of {LONG}", done)


def held_out(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*.jsonl.gz"))
    return [json.loads(line)["text"] for path in paths for line in gzip.open(path, "rt")]


def trained(base: Path, out: Path, model: Path, length: int, *, steps: int) -> Path:
    """``model`` after ``steps`` on rows of ``length``: three tenths passkeys, the rest the base's
    corpus."""
    n_tokens = steps * STEP
    mix = {"*/passkey": 0.3, "*": 0.7}
    phase = {"tokens": n_tokens, "rows": STEP // length, "length": length, "mix": mix}
    shards = [base / "training-shards", passkeys(base / "tokenizer", out, length, n_tokens)]
    tree: dict[str, Any] = {
        "out": out,
        "model": str(model),
        "data": {
            "shards": [str(folder) for folder in shards],
            "across_documents": True,
            "phases": [phase],
        },
        "optimizer": {"rate": RATE},
        "schedule": {"warmup": 20, "decay": 0.3},
    }
    return train_model(tree)


def passkeys(tokenizer: Path, out: Path, length: int, n_tokens: int) -> Path:
    """Shards of passkeys of up to ``length`` tokens, half of ``n_tokens`` in all."""
    folder, shards = out / "passkeys", out / "passkey-shards"
    if shards.exists():
        return shards
    words = AutoTokenizer.from_pretrained(tokenizer)
    make, rng, left = passkey(words), random.Random(length), n_tokens // 2
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "00000.jsonl.gz", "wt") as file:
        while left > 0:
            context, answer = make(rng.randint(SHORTEST, length), rng.random(), rng)
            text = words.decode([*context, *answer])
            about = {"language": "en", "domain": "passkey"}
            row = {"text": text, "id": f"{length}-{left}", "metadata": about}
            file.write(json.dumps(row) + "\n")
            left -= len(context) + len(answer)
    write_shards(folder, shards, ShardSettings(tokenizer=str(tokenizer)))
    return shards


def extended(model: Path, out: Path, method: str) -> None:
    if method != "none":
        extend(model, out, LONG, method=method)
        return
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    config["max_position_embeddings"] = LONG
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
