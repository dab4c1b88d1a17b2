"""A small base model from a folder of documents: tokenizer, shards, training, and a comparison.

    python scripts/pretrain_base.py DOCUMENTS OUT [train settings as key=value ...]

DOCUMENTS holds NNNNN.jsonl.gz as the data pipeline writes them. One document in fifty is held out;
at the end, the model's bits per byte on those stand beside what ``xz -9e`` needs for their text.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.tokenizer import train_tokenizer
from pretrain.training.job import train_model

CONFIG = Path(__file__).parent / "configs" / "pretrain.toml"
VOCABULARY, TOKENIZER_BYTES = 8192, 20_000_000


def main(documents: Path, out: Path, overrides: list[str]) -> None:
    held_out = split(documents, out)
    tokenizer, names = out / "tokenizer", ("training", "held-out")
    if not tokenizer.exists():
        sample, size = [], 0
        for row in rows(out / "training"):
            sample.append(row["text"])
            if (size := size + len(row["text"])) > TOKENIZER_BYTES:
                break
        train_tokenizer(sample, vocab_size=VOCABULARY).save_pretrained(tokenizer)
    for name in names:
        if not (out / f"{name}-shards").exists():
            settings = ShardSettings(tokenizer=str(tokenizer))
            write_shards(out / name, out / f"{name}-shards", settings)
    train_model(
        CONFIG,
        f"out={out / 'run'}",
        f'data.shards=["{out}/training-shards"]',
        f'report.held_out=["{out}/held-out-shards"]',
        *overrides,
    )
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    scores = [record for line in lines if "held_out" in (record := json.loads(line))]
    last = {record["held_out"]: record["bits_per_byte"] for record in scores}
    for name, text in held_out.items():
        xz = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
        print(f"{name:12} {len(text):>9,} bytes  model {last[name]:.3f}  xz -9e {xz:.3f} bits/byte")


def split(documents: Path, out: Path) -> dict[str, bytes]:
    """Writes training and held-out documents; returns the held-out text by source."""
    text: dict[str, bytes] = defaultdict(bytes)
    for path in sorted(documents.glob("*.jsonl.gz")):
        parts = [out / name / path.name for name in ("training", "held-out")]
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(parts[0], "wt") as training, gzip.open(parts[1], "wt") as held:
            for row in rows(documents, path.name):
                is_held = crc32(row["id"].encode()) % 50 == 0
                (held if is_held else training).write(json.dumps(row) + "\n")
                if is_held:
                    about = row["metadata"]
                    text[f"{about['language']}/{about['domain']}"] += row["text"].encode()
    return text


def rows(folder: Path, pattern: str = "*.jsonl.gz") -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(pattern)):
        with gzip.open(path, "rt") as file:
            yield from map(json.loads, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
