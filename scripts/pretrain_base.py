"""A small trilingual base model from raw pages: data, tokenizer, shards, training, comparison.

    scripts/fetch_debian_corpus.sh runs/debian
    python scripts/pretrain_base.py runs/debian runs/base [train settings as key=value ...]

PAGES is a folder of WARC, HTML, JSONL or Parquet files. One document in fifty is held out; at the
end, the model's bits per byte on those stand beside what ``xz -9e`` needs for the same text. The
same command goes on where it was stopped.
"""

import gzip
import json
import lzma
import sys
from collections import defaultdict
from pathlib import Path
from zlib import crc32

from pretrain.data.job import prepare_data
from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.tokenizer_sample import SampleSettings, sample
from pretrain.tokenizer_training import TokenizerSettings, save_trained
from pretrain.training import train_model

CONFIG = Path(__file__).parent / "configs" / "pretrain.toml"
LANGUAGES = ("de", "en", "es")
STEPS = ("extract", {"name": "language", "keep": LANGUAGES})  # manuals: no rules for the web
STAGES = ("exact_duplicates", "near_duplicates")


def main(pages: Path, out: Path, overrides: list[str]) -> None:
    clean = prepare_data(input=pages, output=out / "data", steps=STEPS, stages=STAGES, tasks=8)
    held_out = split(clean.documents, out)
    if not (out / "tokenizer").exists():
        balance = SampleSettings(
            documents=(str(out / "training"),), shares=dict.fromkeys(LANGUAGES, 1 / 3)
        )
        save_trained(sample(balance), TokenizerSettings(vocab_size=8192), out / "tokenizer")
    for name in ("training", "held-out"):
        if not (out / f"{name}-shards").exists():
            settings = ShardSettings(tokenizer=str(out / "tokenizer"))
            write_shards(out / name, out / f"{name}-shards", settings)
    shards = [
        f'data.shards=["{out}/training-shards"]',
        f'report.held_out=["{out}/held-out-shards"]',
    ]
    train_model(CONFIG, f"out={out}/run", *shards, *overrides)
    lines = map(json.loads, (out / "run" / "metrics.jsonl").open())
    last = {line["held_out"]: line["bits_per_byte"] for line in lines if "held_out" in line}
    for language, text in sorted(held_out.items()):
        xz = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
        told = f"model {last[f'{language}/text']:.3f}  xz -9e {xz:.3f} bits per byte"
        print(f"{language} {len(text):>9,} bytes held out  {told}")


def split(documents: Path, out: Path) -> dict[str, bytes]:
    """Writes training and held-out documents; returns the held-out text by language."""
    text: dict[str, bytes] = defaultdict(bytes)
    for name in ("training", "held-out"):
        (out / name).mkdir(exist_ok=True)
    for path in sorted(documents.glob("*.jsonl.gz")):
        with (
            gzip.open(path, "rt") as rows,
            gzip.open(out / "training" / path.name, "wt") as training,
            gzip.open(out / "held-out" / path.name, "wt") as held_out,
        ):
            for line in rows:
                row = json.loads(line)
                if crc32(row["id"].encode()) % 50:
                    training.write(line)
                else:
                    held_out.write(line)
                    text[row["metadata"]["language"]] += row["text"].encode()
    return text


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
