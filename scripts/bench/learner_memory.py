"""Does a learner rank's memory grow with the number of steps done? It must not.

One rank on its own; every step has new samples of new lengths, so no two steps are of one shape.
Prints resident memory and speed every tenth of the way, and one JSON line.

    python scripts/bench/learner_memory.py --model runs/quickstart/sft --steps 200
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

PROMPTS, GROUP, PROMPT_TOKENS, ANSWER_TOKENS = 16, 8, 28, (3, 45)  # as in the quickstart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.steps < 10:
        parser.error("--steps: at least 10")
    print(json.dumps(measure(options.model, options.steps, options.threads)))


def measure(model: str, steps: int, threads: int) -> dict[str, object]:
    """Train ``steps`` steps on random tokens; memory in MB at each tenth."""
    import torch

    torch.set_num_threads(threads)
    from posttrain.batching import pack
    from posttrain.config import GrpoConfig
    from posttrain.learner.learner import RankLearner

    config = GrpoConfig.model_validate({"model": model, "env": "none", "run_dir": "none"})
    learner = RankLearner(config, np.arange(1, 9))
    rng = np.random.default_rng(0)
    memory, speeds = [], []
    for step in range(steps):
        batch = pack(_samples(rng), config.learner.tokens_per_row, 1, step)
        start = time.perf_counter()
        result = learner.train(batch)
        speeds.append(result.metrics["learner_tokens"] / (time.perf_counter() - start))
        if (step + 1) % (steps // 10) == 0:
            memory.append(_resident_mb())
            print(f"step {step + 1}: {memory[-1]} MB, {speeds[-1]:.0f} tokens/s", file=sys.stderr)
    return {
        "rss_mb": memory,
        "growth_of_second_half": round(memory[-1] / memory[4] - 1, 4),
        "tokens_per_s": round(statistics.median(speeds)),
        "steps": steps,
        "threads": threads,
    }


def _samples(rng: np.random.Generator) -> list:
    from posttrain.types import Sample

    samples = []
    for prompt in range(PROMPTS):
        shared = rng.integers(1, 200, PROMPT_TOKENS)
        for member in range(GROUP):
            answer = rng.integers(1, 200, rng.integers(*ANSWER_TOKENS))
            mask = np.arange(PROMPT_TOKENS + len(answer)) >= PROMPT_TOKENS
            samples.append(
                Sample(
                    token_ids=np.concatenate([shared, answer]),
                    loss_mask=mask,
                    logprobs=np.where(mask, -5.0, 0.0).astype(np.float32),
                    advantages=np.where(mask, rng.normal(), 0.0).astype(np.float32),
                    weight_versions=np.zeros(len(mask), np.int64),
                    rollout_id=f"{prompt}/{member}",
                )
            )
    return samples


def _resident_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(kib) // 1024


if __name__ == "__main__":
    main()
