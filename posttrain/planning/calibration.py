"""Seconds of one step on this machine: measured with the real parts, or guessed from a matmul.

Decides what a short calibration is: this process builds one learner rank and trains its share of
the planned step three times, counting the faster of the last two; then the embedded engine writes
the step's answers at their full length. vLLM writes faster, above all long answers on a GPU.
Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig
from posttrain.learner.memory import ModelSize
from posttrain.learner.process import threads_per_rank
from posttrain.planning.workload import Workload
from posttrain.types import Request, Sampling

# Shares of a large matmul's speed that are guessed without a calibration. Decoding is bound by
# reading weights, not by arithmetic.
_TRAIN_SHARE, _DECODE_SHARE = 0.3, 0.05


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds; ``how`` says where they come from."""

    train_s: float
    generation_s: float
    how: str
    rank_peak_bytes: int = 0  # 0: not measured


def guess(size: ModelSize, work: Workload, config: GrpoConfig) -> StepTime:
    """From the multiply-adds of the step and the speed of one matmul here."""
    algorithm = Algorithm.of(config.algorithm)
    passes = 3 + learner_extra(config) + bool(algorithm.reference) + 3 * bool(algorithm.critic)
    tokens = max(sum(len(row.token_ids) for row in rows) for rows in work.batch.rows)
    read = sum(len(ids) for ids in work.prompt_ids) + work.completion_tokens
    rate, shared = _matmul_rate(config.learner.dtype), config.learner.sequence_parallel
    return StepTime(
        train_s=2 * size.active * passes * tokens / (_TRAIN_SHARE * rate * shared),
        generation_s=2 * size.active * read / (_DECODE_SHARE * rate),
        how=f"guessed from a matmul at {rate / 1e9:,.0f} GFLOP/s, often wrong by a factor of 3; "
        "--calibrate measures",
    )


def learner_extra(config: GrpoConfig) -> int:
    """Forward passes computed again by gradient checkpointing."""
    return int(config.learner.checkpointing)


def calibrate(work: Workload, config: GrpoConfig) -> StepTime:
    """Load the model here, train one step, write one step's answers."""
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints
        train_s, peak = _train(work, config)
        generation_s = asyncio.run(_generate(work, config))
    how = "measured here: one rank's step, and the embedded engine writing all answers"
    return StepTime(train_s, generation_s, how, peak)


def _train(work: Workload, config: GrpoConfig) -> tuple[float, int]:
    import torch

    from posttrain.learner.learner import RankLearner

    torch.set_num_threads(threads_per_rank(config))
    alone = config.learner.model_copy(update={"ranks": 0, "sequence_parallel": 1})
    learner = RankLearner(config.model_copy(update={"learner": alone}), np.arange(1, 9))
    batch = dataclasses.replace(
        work.batch, rows=work.batch.rows[:1], members=work.batch.members[:1]
    )
    learner.train(batch)
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        result = learner.train(batch)
        seconds = min(seconds, time.perf_counter() - began)
    if torch.cuda.is_available():
        return seconds, torch.cuda.max_memory_allocated()
    return seconds, int(result.metrics["learner_rss_mb"] * 2**20)


async def _generate(work: Workload, config: GrpoConfig) -> float:
    from posttrain.engines.embedded import EmbeddedEngine

    engine = EmbeddedEngine(
        config.model,
        dtype=config.rollout.dtype,
        max_probe_gap=config.sync.max_probe_gap,
        max_batch=config.rollout.max_concurrency,
    )
    await engine.start()
    try:
        sampling = Sampling(work.answer_tokens, config.rollout.temperature, ())
        requests = [
            Request(f"0-{number}-{member}", ids, sampling, seed=number * 1000 + member)
            for number, ids in enumerate(work.prompt_ids)
            for member in range(config.grpo.group_size)
        ]
        engine.admit(len(requests))
        began = time.perf_counter()
        await asyncio.gather(*(engine.generate(request) for request in requests))
        return time.perf_counter() - began
    finally:
        await engine.close()


def _matmul_rate(dtype: str) -> float:
    """Floating-point operations per second of a 1024 x 1024 product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind: Any = getattr(torch, dtype)
    a = torch.randn(1024, 1024, device=device, dtype=kind)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        for _ in range(2):
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * 2 * 1024**3 / best
