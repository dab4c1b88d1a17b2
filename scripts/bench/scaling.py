"""Do losses of small models predict that of a model at least four times larger?

Qwen3 models of 0.06 to 0.71 M parameters on Debian's English manuals, 0.25 to 1 M tokens each,
predict one of 2.83 M parameters on 1 M tokens. Every run is one pass over fresh text, one thread.
Learning rates come from a sweep of their own over the sizes, never from the large model's.

    scripts/fetch_debian_corpus.sh runs/debian
    for stage in prepare rates grid target; do
        python scripts/bench/scaling.py $stage runs/scaling --corpus runs/debian
    done
    python scripts/bench/scaling.py fit runs/scaling

A finished run is a line of rates.jsonl, grid.jsonl or target.jsonl and is not run again. ``--share
0/2`` and ``--share 1/2`` are two processes that divide a stage; ``--minutes`` starts no run after
that time, for a machine that is shared; the exit code is 3 while runs are left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.packing import IGNORE, Rows, pack
from pretrain.planning.fit import fit_law
from pretrain.planning.rates import fit_rates
from pretrain.planning.runs import read_runs

LAYERS, ROW, ROWS_PER_STEP, VOCABULARY = 3, 128, 8, 512
WIDTHS, TARGET_WIDTH = (32, 64, 96, 128), 264  # the last: 4.01 times the parameters of 128
STEPS = (244, 488, 976)  # of 1,024 tokens
RATE_WIDTHS, RATES = (32, 64, 128), (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
HELD_OUT_ROWS = 512
PACKAGES = (
    *("debian-handbook", "debian-reference-en", "installation-guide-amd64"),
    *("libreoffice-help-en-us", "maint-guide", "python3.11-doc"),
)
LEFT = 3  # exit code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("prepare", "rates", "grid", "target", "fit"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--share", default="0/1", help="which runs of the stage: I of N")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after these")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.stage == "prepare":
        prepare(options.corpus, options.folder)
        return 0
    if options.stage == "fit":
        report(options.folder)
        return 0
    return run_stage(options)


# data


def prepare(corpus: Path, folder: Path) -> None:
    """Text of the English pages, a tokenizer, packed rows; one page in fifty is held out."""
    from pretrain.tokenizer import train_tokenizer

    train: list[tuple[bytes, str]] = []
    held_out: list[tuple[bytes, str]] = []
    for path, text in pages(corpus):
        digest = hashlib.blake2b(path.encode(), digest_size=4).digest()
        (held_out if digest[0] % 50 == 0 else train).append((digest, text))
    texts = {
        name: [text for _, text in sorted(part)]
        for name, part in (("train", train), ("held_out", held_out))
    }
    tokenizer = train_tokenizer(texts["train"][:1500], vocab_size=VOCABULARY, max_length=ROW)
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, part in texts.items():
        ids = tokenizer(part, add_special_tokens=False)["input_ids"]
        rows = pack(ids, ROW, tokenizer.eos_token_id, tokenizer.pad_token_id)
        np.savez(folder / f"{name}.npz", rows.tokens, rows.labels, rows.positions)
        said = {
            "part": name,
            "pages": len(part),
            "characters": sum(map(len, part)),
            "tokens": rows.token_count,
            "rows": len(rows.tokens),
        }
        print(json.dumps(said), flush=True)


def pages(corpus: Path) -> Iterator[tuple[str, str]]:
    """Path and main text of each English page."""
    from resiliparse.extract.html2text import extract_plain_text

    for package in PACKAGES:
        for path in sorted((corpus / package).rglob("*.html")):
            where = str(path.relative_to(corpus))
            if package == "debian-handbook" and "/en-US/" not in where:
                continue
            if package == "installation-guide-amd64" and "/en/" not in where:
                continue
            text = extract_plain_text(path.read_text(errors="replace"), main_content=True)
            if len(text) > 200:
                yield where, text


def load(folder: Path, name: str) -> Rows:
    with np.load(folder / f"{name}.npz") as arrays:
        return Rows(*(arrays[f"arr_{i}"] for i in range(3)))


# runs


def run_stage(options: argparse.Namespace) -> int:
    """The runs of a stage that are not in its file yet."""
    wanted = list(planned(options.stage, options.folder))
    file = options.folder / f"{options.stage}.jsonl"
    index, of = map(int, options.share.split("/"))
    mine = [run for i, run in enumerate(wanted) if i % of == index and run not in done(file)]
    started = time.monotonic()
    for n, run in enumerate(mine):
        if time.monotonic() - started > 60 * options.minutes:
            print(f"{len(mine) - n} runs left", file=sys.stderr)
            return LEFT
        line = json.dumps({**run, **measure(run, options.folder)})
        with file.open("a") as out:
            out.write(line + "\n")
            os.fsync(out.fileno())
        print(line, flush=True)
    return 0


def planned(stage: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Every run of a stage, the longest first."""
    if stage == "rates":
        for width in reversed(RATE_WIDTHS):
            for rate in RATES:
                yield {"width": width, "steps": STEPS[0], "learning_rate": rate}
        return
    law = fit_rates(read_runs(folder / "rates.jsonl"))
    for width in reversed(WIDTHS) if stage == "grid" else (TARGET_WIDTH,):
        for steps in reversed(STEPS) if stage == "grid" else STEPS[-1:]:
            rate = float(f"{law.rate(parameters(width)):.3g}")
            yield {"width": width, "steps": steps, "learning_rate": rate}


def done(file: Path) -> list[dict[str, Any]]:
    """The runs in a stage's file. A line torn by a kill is cut off, and its run made again."""
    if not file.exists():
        return []
    text = file.read_text()
    if not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1])
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{name: row[name] for name in ("width", "steps", "learning_rate")} for row in rows]


def parameters(width: int) -> int:
    """Of the model in ``measure``, embeddings included: what its own count says (checked there)."""
    attention = 4 * width * (width // 32 * 32) + 2 * 32
    layer = attention + 9 * width * width + 2 * width
    return VOCABULARY * width + LAYERS * layer + width


def measure(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one model; its loss on the held-out rows."""
    import torch
    from transformers import AutoTokenizer

    from pretrain.model import ModelSettings, new_model
    from pretrain.train import TrainSettings, train

    torch.set_num_threads(1)
    width, heads = run["width"], run["width"] // 32
    shape = ModelSettings(
        hidden_size=width,
        layers=LAYERS,
        mlp_size=3 * width,
        heads=heads,
        kv_heads=heads,
        head_dim=32,
        max_length=ROW,
    )
    model = new_model(shape, AutoTokenizer.from_pretrained(folder / "tokenizer"))
    assert model.num_parameters() == parameters(width)
    settings = TrainSettings(
        steps=run["steps"],
        rows_per_step=ROWS_PER_STEP,
        row_tokens=ROW,
        dtype="float32",
        learning_rate=run["learning_rate"],
        threads=1,
    )
    started = time.process_time()
    told = train(model, load(folder, "train"), settings)
    return {
        "parameters": parameters(width),
        "tokens": told.tokens,
        "loss": held_out_loss(model, load(folder, "held_out")),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def held_out_loss(model: Any, rows: Rows) -> float:
    """Nats per token over the first held-out rows, the same for every model."""
    import torch

    total = tokens = 0.0
    with torch.inference_mode():
        for at in range(0, min(HELD_OUT_ROWS, len(rows.tokens)), 32):
            part = [
                torch.from_numpy(array[at : at + 32])
                for array in (rows.tokens, rows.labels, rows.positions)
            ]
            n = int((part[1] != IGNORE).sum())
            loss = model(input_ids=part[0], labels=part[1], position_ids=part[2]).loss
            total, tokens = total + n * float(loss), tokens + n
    return total / tokens


# the fit


def report(folder: Path) -> None:
    """The law of the small models, what it says of the large one, and what that one did."""
    runs = read_runs(folder / "grid.jsonl")
    fit = fit_law(runs)
    said: dict[str, Any] = {
        "runs": len(runs),
        "law": asdict(fit.law),
        "error_of_fit": fit.error,
        "rate_exponent": fit_rates(read_runs(folder / "rates.jsonl")).exponent,
        "cpu_seconds": cpu_seconds(folder),
    }
    print(json.dumps(said))
    for truth in read_runs(folder / "target.jsonl"):
        predicted = fit.law.loss(truth.parameters, truth.tokens)
        nearest = max(runs, key=lambda run: (run.parameters, run.tokens))
        told = {
            "parameters": truth.parameters,
            "times_the_largest": truth.parameters / nearest.parameters,
            "tokens": truth.tokens,
            "predicted": predicted,
            "interval": fit.loss_interval(truth.parameters, truth.tokens),
            "measured": truth.loss,
            "error": predicted / truth.loss - 1,
            "error_without_a_law": nearest.loss / truth.loss - 1,  # "as good as the largest"
        }
        print(json.dumps(told))


def cpu_seconds(folder: Path) -> dict[str, float]:
    """Of each stage."""
    files = [folder / f"{stage}.jsonl" for stage in ("rates", "grid", "target")]
    return {
        file.stem: sum(json.loads(line)["cpu_seconds"] for line in file.read_text().splitlines())
        for file in files
        if file.exists()
    }


if __name__ == "__main__":
    sys.exit(main())
