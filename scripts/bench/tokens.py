"""What tokenising and streaming cost: tokenizers, shards with one process and two, rows.

    python scripts/bench/tokens.py DOCUMENTS OUT [--vocab-size 16384]

DOCUMENTS is a folder of NNNNN.jsonl.gz. CPU seconds of this process and its children stand beside
the wall time, as other work on the machine does not change them much.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.data.stream import Stream, StreamSettings
from pretrain.tokenizer_sample import SampleSettings, sample
from pretrain.tokenizer_training import TokenizerSettings, save_trained

ROWS, LENGTH, STEPS = 64, 2048, 20


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and wall and CPU seconds."""
    wall, before = time.perf_counter(), os.times()
    result = work()
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return result, {"wall_s": round(time.perf_counter() - wall, 3), "cpu_s": round(cpu, 3)}


def train(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One tokenizer of a kind."""
    settings = TokenizerSettings(kind=kind, vocab_size=options.vocab_size)
    drawn = sample(SampleSettings(documents=(options.documents,)))
    _, seconds = timed(lambda: save_trained(drawn, settings, options.out / kind))
    return {"what": f"train {kind}", "characters": drawn.characters, **seconds}


def tokenise(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """All documents to shards."""
    settings = ShardSettings(tokenizer=str(options.out / "bpe"), processes=processes)
    shards, seconds = timed(
        lambda: write_shards(options.documents, options.out / f"shards-{processes}", settings)
    )
    per_cpu = round(shards.tokens / seconds["cpu_s"])
    return {
        "what": f"shards, {processes} processes",
        "tokens": shards.tokens,
        "tokens_per_cpu_s": per_cpu,
        **seconds,
    }


def stream(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Opening with and without the checksums, and steps in a scattered order."""
    phase = {"tokens": 1000 * ROWS * LENGTH, "rows": ROWS, "length": LENGTH}
    settings = StreamSettings(shards=[str(options.out / "shards-1")], phases=[phase])
    _, verified = timed(lambda: Stream(settings, seed=0))
    opened, unverified = timed(lambda: Stream(settings, seed=0, verify=False))
    _, read = timed(lambda: [opened.batch(step * 47 % 1000) for step in range(STEPS)])
    per_step = round(read["cpu_s"] / STEPS * 1000, 2)
    tokens = STEPS * ROWS * LENGTH
    return [
        {"what": "open, verified", **verified},
        {"what": "open", **unverified},
        {
            "what": f"a step of {ROWS} x {LENGTH}",
            "cpu_ms_per_step": per_step,
            "tokens_per_cpu_s": round(tokens / max(read["cpu_s"], 0.01)),
            **read,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents")
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    options = parser.parse_args()
    print(json.dumps(train(options, "bpe")), flush=True)
    for processes in (1, 2):
        print(json.dumps(tokenise(options, processes)), flush=True)
    for line in stream(options):
        print(json.dumps(line), flush=True)
    print(json.dumps(train(options, "unigram")), flush=True)


if __name__ == "__main__":
    main()
