"""Our fine-tuning against TRL's SFTTrainer used directly, and packed against padded rows.

The same checkpoint, rows, settings and seed; sides take turns, first one then the other; medians of
the rounds' ratios are quoted. Tokens are the rows' own, padding is not counted. ``whole`` is
everything from rows to a trained model (reading, masks, loading, training), ``training`` the
trainer's own time, each by the wall clock and in CPU time, which other work on the machine disturbs
less. Losses of all steps are compared as well.

    python scripts/bench/sft.py                 # the model and rows of the quickstart's size
    python scripts/bench/sft.py --answers 200   # short rows among longer ones: packing gains more

One JSON line. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("trl", "off", "batch", "rows")
LEARNING_RATE, WARMUP = 3e-4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder (default: a fresh one of 1.4 M weights)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=0, help="longest answer, in words; 0: sums")
    parser.add_argument("--fp32", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(options, Path(folder))))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every side in turn; ratios within each round."""
    import pretrain

    model = options.model
    if model is None:
        training = pretrain.TrainSettings(steps=1, rows_per_step=1, row_tokens=64)
        settings = pretrain.BaseSettings(training=training, documents=1000)
        model = str(pretrain.make_base(folder / "base", settings))
    rows = _rows(options)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    _side("off", model, rows[: options.batch_size], options, folder)  # kernels and imports
    for number in range(options.rounds):
        turn = SIDES if number % 2 == 0 else SIDES[::-1]
        for side in turn:
            runs[side].append(_side(side, model, rows, options, folder))
    result: dict[str, Any] = {
        "examples": len(rows),
        "steps": options.steps,
        "rounds": options.rounds,
    }
    for side, found in runs.items():
        result[side] = {key: statistics.median(one[key] for one in found) for key in RATES}
    for name, ours, theirs in (
        ("ours_over_trl", "off", "trl"),
        ("packed_over_padded", "batch", "off"),
        ("filled_rows_over_padded", "rows", "off"),
        ("packed_over_trl", "batch", "trl"),
    ):
        pairs = list(zip(runs[ours], runs[theirs], strict=True))
        result[name] = {
            key: round(statistics.median(a[key] / b[key] for a, b in pairs), 3) for key in RATES
        }
    losses = zip(runs["off"][0]["losses"], runs["trl"][0]["losses"], strict=True)
    result["largest_loss_difference"] = max(abs(a - b) for a, b in losses)
    return result


RATES = tuple(
    f"{part}_tokens_per_{clock}" for part in ("training", "whole") for clock in ("s", "cpu_s")
)


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    import pretrain

    rows: list[dict[str, Any]] = list(
        pretrain.chat_rows(pretrain.CorpusSettings(), options.steps * options.batch_size, seed=1)
    )
    draw = random.Random(0)
    for row in rows if options.answers else ():
        # Lengths as in chat data: most short, few long.
        words = int(options.answers ** draw.random())
        said = " ".join(str(draw.randint(0, 99)) for _ in range(words))
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": said}]
    return rows


def _side(
    side: str, model: str, rows: list[Any], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    run: Callable[..., Any] = _trl if side == "trl" else _ours
    started, cpu = time.perf_counter(), time.process_time()
    trainer = run(model, rows, options, folder / "work", side)
    ready = time.process_time()
    trainer.train()
    whole, ended = time.perf_counter() - started, time.process_time()
    history = trainer.state.log_history
    seconds = next(log["train_runtime"] for log in reversed(history) if "train_runtime" in log)
    tokens = max(log.get("num_tokens", 0) for log in history)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return {
        "training_tokens_per_s": round(tokens / seconds),
        "whole_tokens_per_s": round(tokens / whole),
        "training_tokens_per_cpu_s": round(tokens / (ended - ready)),
        "whole_tokens_per_cpu_s": round(tokens / (ended - cpu)),
        "losses": [log["loss"] for log in history if "loss" in log],
    }


def _ours(
    model: str, rows: list[Any], options: argparse.Namespace, work: Path, packing: str
) -> Any:
    from posttrain.trainers.sft import make_trainer, prepare
    from posttrain.trainers.sft_settings import SftSettings

    one_row = 512 if packing == "rows" else 0  # as many tokens in a step, about
    settings = SftSettings(
        packing=packing,  # type: ignore[arg-type]
        max_length=512,
        batch_size=max(1, options.batch_size // 8) if one_row else options.batch_size,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        bf16=False if options.fp32 else None,
        log_every=1,
        too_long="truncate",
    )
    return make_trainer(prepare(model, rows, settings), work)


def _trl(model: str, rows: list[Any], options: argparse.Namespace, work: Path, _: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=1,
        max_length=512,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        assistant_only_loss=True,
        gradient_checkpointing=False,  # TRL's default costs it a second forward pass
        bf16=not options.fp32 and torch.cpu._is_avx512_bf16_supported(),
        use_cpu=True,
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": "float32"},
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        seed=0,
    )
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )


if __name__ == "__main__":
    main()
