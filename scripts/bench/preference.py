"""DPO here against TRL's DPOTrainer used directly: tokens per second with the same settings.

Same checkpoint, rows, order, batches, rate, precision and threads; runs alternate, each in its own
process. TRL as it is by default (a reference model beside the policy), and with its reference
log-probs precomputed; ours the first time, and again, when the log-probs are on disk. Counted from
rows to the last step, without imports, loading and saving; tokens are prompt and answer of both
sides. CPU seconds beside wall time, for a machine that is not quiet.

    python scripts/bench/preference.py --model runs/quickstart/sft
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("trl", "trl-precomputed", "ours-first", "ours-again")
BATCH, RATE = 16, 5e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the rows in these steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", help="internal: run one side and print its numbers")
    parser.add_argument("--cache", help="internal")
    options = parser.parse_args()
    if options.side:
        side = _trl if options.side.startswith("trl") else _ours
        print("RESULT " + json.dumps(side(options)))
    else:
        print(json.dumps(compare(options)))


def compare(options: Any) -> dict[str, Any]:
    """Medians of each side, and their ratios to TRL's two ways."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for side in SIDES:
                results[side].append(_run(options, side, cache))
                print(side, results[side][-1], file=sys.stderr)

    def median(side: str, key: str) -> float:
        return round(statistics.median(result[key] for result in results[side]), 1)

    def ratios(side: str, base: str) -> list[float]:
        """CPU seconds: of each pair of runs."""
        pairs = zip(results[side], results[base], strict=True)
        return [round(a["tokens_per_cpu_s"] / b["tokens_per_cpu_s"], 3) for a, b in pairs]

    keys = ("tokens_per_s", "tokens_per_cpu_s", "first_loss", "last_loss")
    return {
        "sides": {side: {key: median(side, key) for key in keys} for side in SIDES},
        "first_over_trl": ratios("ours-first", "trl"),
        "again_over_trl": ratios("ours-again", "trl"),
        "first_over_trl_precomputed": ratios("ours-first", "trl-precomputed"),
        "again_over_trl_precomputed": ratios("ours-again", "trl-precomputed"),
        "steps": options.steps,
        "pairs_per_step": BATCH,
        "threads": options.threads,
    }


def _run(options: Any, side: str, cache: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--cache", cache]
    for name in ("model", "steps", "epochs", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return found
    raise SystemExit(f"{side} did not run: {done.stderr[-2000:]}")


def rows(options: Any) -> list[dict[str, str]]:
    """Sums with a worked answer that is right or ends wrong."""
    rng, found = random.Random(0), []
    for _ in range(options.steps * BATCH // options.epochs):
        terms = [rng.randint(1, 9) for _ in range(rng.randint(3, 6))]
        lines = [
            f"{sum(terms[:i])} + {terms[i]} = {sum(terms[: i + 1])}" for i in range(1, len(terms))
        ]
        thoughts = "<think>" + "\n".join(lines) + "</think>"
        asked = " + ".join(map(str, terms))
        right, wrong = sum(terms), sum(terms) + rng.choice((-2, -1, 1, 2))
        found.append(
            {
                "prompt": f"State the final answer to the following arithmetic problem: {asked} =",
                "chosen": f"{thoughts}{right}",
                "rejected": f"{thoughts if rng.random() < 0.5 else ''}{wrong}",
            }
        )
    return found


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def numbers(self, tokens: int, losses: list[float]) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {
            "tokens_per_s": tokens / wall,
            "tokens_per_cpu_s": tokens / cpu,
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }


def _ours(options: Any) -> dict[str, float]:
    import torch

    # Imports are not counted: what the trainer imports when it runs is imported here.
    from posttrain.trainers import preference_trainers  # noqa: F401
    from posttrain.trainers.preference import train_preferences

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock()
        out = train_preferences(
            options.model, rows(options), Path(folder) / "out", steps=options.steps,
            batch_size=BATCH, learning_rate=RATE, held_out_share=0.0, threads=options.threads,
            reference_cache=options.cache, quiet=True,
        )  # fmt: skip
        record = json.loads((out / "preference.json").read_text())
        return clock.numbers(record["tokens"], [point["loss"] for point in record["curves"]])


def _trl(options: Any) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock()
        data = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{s: [{"role": "assistant", "content": row[s]}] for s in ("chosen", "rejected")},
            }
            for row in rows(options)
        ]
        trainer = DPOTrainer(
            model=options.model,
            args=DPOConfig(
                output_dir=folder, max_steps=options.steps, per_device_train_batch_size=BATCH,
                learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=10,
                gradient_checkpointing=False, bf16=torch.cpu._is_avx512_bf16_supported(),
                use_cpu=True, logging_steps=10, logging_first_step=True, report_to="none",
                save_strategy="no", disable_tqdm=True, seed=0,
                precompute_ref_log_probs=options.side == "trl-precomputed",
            ),
            train_dataset=Dataset.from_list(data),
        )  # fmt: skip
        trainer.train()
        trainer.model.save_pretrained(folder)
        history = trainer.state.log_history
        tokens = next(int(log["num_tokens"]) for log in reversed(history) if "num_tokens" in log)
        return clock.numbers(tokens, [log["loss"] for log in history if "loss" in log])


if __name__ == "__main__":
    main()
