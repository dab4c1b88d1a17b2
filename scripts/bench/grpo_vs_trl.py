"""Our loop against TRL's GRPOTrainer: completion tokens per second end to end, and peak memory.

Same checkpoint, prompts in the same order, group size, sampling, length limit, optimiser and number
of steps; the runs alternate, medians are quoted. The learning rate is tiny, so that both
sides keep writing answers of the start policy's lengths. The first steps of a run (start-up,
warm-up of kernels and caches) don't count on either side.

Each side runs in several configurations in a short trial, and in its fastest when it is measured.
TRL: transformers' generate and its continuous batching, float32 and bfloat16. Ours: vLLM
synchronous, vLLM one step ahead (max_lag = 1), and the embedded engine.

    python scripts/bench/grpo_vs_trl.py --model runs/quickstart-.../sft
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ENV: dict[str, Any] = dict(min_terms=4, max_terms=6, min_digits=1, max_digits=1, seed=0)
PROMPTS, GROUP, MAX_TOKENS, LEARNING_RATE, SKIP = 16, 8, 64, 1e-6, 3
OUR_CANDIDATES = ("ours-vllm-0", "ours-vllm-1", "ours-embedded-0")
TRL_CANDIDATES = ("generate-bf16", "generate-fp32", "continuous-bf16", "continuous-fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", help="internal: run one side and print its numbers")
    options = parser.parse_args()
    if options.side:
        side = _ours if options.side.startswith("ours") else _trl
        print("RESULT " + json.dumps(side(options.model, options.steps, options.side)))
        return
    print(json.dumps(compare(options.model, options.steps, options.repeats)))


def compare(model: str, steps: int, repeats: int) -> dict[str, Any]:
    """Alternate the fastest configuration of each side and report the ratio of medians."""
    ours, our_trials = _fastest(model, OUR_CANDIDATES)
    trl, trl_trials = _fastest(model, TRL_CANDIDATES)
    runs: dict[str, list[dict[str, Any]]] = {ours: [], trl: []}
    for _ in range(repeats):
        for name, results in runs.items():
            results.append(_run(model, steps, name))
            print(name, results[-1], file=sys.stderr)

    def median(name: str, key: str) -> float:
        return statistics.median(result[key] for result in runs[name])

    pairs = zip(runs[ours], runs[trl], strict=True)
    numbers = {
        f"{side}_{key}": round(median(name, key), 3)
        for side, name in (("ours", ours), ("trl", trl))
        for key in ("tokens_per_s", "step_s", "mean_length", "peak_mb")
    }
    return {
        "ratio": round(median(ours, "tokens_per_s") / median(trl, "tokens_per_s"), 2),
        "ratio_of_each_pair": [round(a["tokens_per_s"] / b["tokens_per_s"], 2) for a, b in pairs],
        **numbers,
        "ours_configuration": ours,
        "trl_configuration": trl,
        "trials_tokens_per_s": our_trials | trl_trials,
        "ours_parts_s": runs[ours][-1]["parts_s"],
        "completions_per_step": PROMPTS * GROUP,
        "steps": steps,
        "repeats": repeats,
    }


def _fastest(model: str, candidates: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """The fastest of a side's configurations that runs here, and what each one reached."""
    trials = {name: _run(model, SKIP + 6, name) for name in candidates}
    speed = {n: round(r["tokens_per_s"]) for n, r in trials.items() if "tokens_per_s" in r}
    print(f"trial, completion tokens/s: {speed}", file=sys.stderr)
    return max(speed, key=lambda name: speed[name]), speed


def _run(model: str, steps: int, side: str) -> dict[str, Any]:
    """One side in its own process; peak memory is that of its whole process tree."""
    command = [sys.executable, __file__, "--model", model, "--steps", str(steps), "--side", side]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        peak = _PeakMemory(process.pid)
        out, _ = process.communicate(timeout=1800)
        peak_mb = peak.stop()
        for line in out.splitlines():
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT ")) | {"peak_mb": peak_mb}
        log.seek(0)
        tail = log.read()[-1500:]
    print(f"{side} did not run: {tail}", file=sys.stderr)
    return {}


class _PeakMemory:
    """Largest sum of proportional set sizes of a process and its children, in MB."""

    def __init__(self, pid: int) -> None:
        self._root, self._peak, self._ended = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._ended.set()
        self._thread.join(timeout=10)
        return self._peak / 1e6

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            total = 0
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in tree:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)


def _summary(seconds: list[float], tokens: list[float], n: int) -> dict[str, Any]:
    return {
        "tokens_per_s": sum(tokens) / sum(seconds),
        "step_s": statistics.median(seconds),
        "mean_length": sum(tokens) / len(tokens) / n,
    }


def _ours(model: str, steps: int, side: str) -> dict[str, Any]:
    import envs
    import posttrain

    _, engine, lag = side.split("-")
    with tempfile.TemporaryDirectory() as folder:
        run = posttrain.grpo(
            model=model,
            env=envs.load("reasoning_gym:chain_sum", **ENV),
            steps=steps,
            prompts_per_step=PROMPTS,
            group_size=GROUP,
            max_lag=int(lag),
            rollout={"engine": engine, "max_tokens": MAX_TOKENS},
            learner={"learning_rate": LEARNING_RATE},
            evaluation={"tasks": 0},
            checkpoint={"every": 10**6},
            run_dir=Path(folder) / "run",
            quiet=True,
        )
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "step"][SKIP:]
    # wall time between the ends of consecutive steps: whatever happens between them counts
    every = [r for r in map(json.loads, lines) if r["kind"] == "step"]
    ends = [r["time"] for r in every[SKIP - 1 :]]
    seconds = [later - earlier for earlier, later in zip(ends[:-1], ends[1:], strict=True)]
    parts = {
        name: round(statistics.median(r.get(f"time_{name}_s", 0.0) for r in records), 3)
        for name in ("generation", "wait", "train", "sync", "total")
    }
    tokens = [r["completion_tokens"] for r in records]
    return _summary(seconds, tokens, PROMPTS * GROUP) | {"parts_s": parts}


def _trl_config(folder: str, steps: int, generation: str, dtype: str) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        beta=0.0,
        loss_type="dapo",
        epsilon_high=0.28,
        shuffle_dataset=False,
        bf16=dtype == "bf16",
        gradient_checkpointing=False,
        use_transformers_continuous_batching=generation == "continuous",
        use_cpu=True,
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
    )


def _trl(model: str, steps: int, side: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOTrainer

    import envs

    generation, dtype = side.split("-")
    environment = envs.load("reasoning_gym:chain_sum", **ENV)
    tasks = [environment.tasks.train(i) for i in range(steps * PROMPTS)]
    data = Dataset.from_list(
        [{"prompt": [dict(m) for m in t.messages], "answer": str(t.answer)} for t in tasks]
    )
    lengths: list[float] = []

    def reward(
        completions: list[Any], answer: list[str], completion_ids: list[Any], **_: Any
    ) -> list[float]:
        lengths.append(sum(len(ids) for ids in completion_ids))
        texts = [c[0]["content"].split("</think>")[-1].strip() for c in completions]
        return [float(text == gold) for text, gold in zip(texts, answer, strict=True)]

    class Clock(TrainerCallback):
        ends: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32
            ),
            reward_funcs=reward,
            args=_trl_config(folder, steps, generation, dtype),
            train_dataset=data,
            callbacks=[clock],
        )
        trainer.train()
    ends = clock.ends[SKIP - 1 :]
    seconds = [later - earlier for earlier, later in zip(ends[:-1], ends[1:], strict=True)]
    return _summary(seconds, lengths[SKIP : SKIP + len(seconds)], PROMPTS * GROUP)


if __name__ == "__main__":
    main()
