"""``posttrain plan CONFIG``: what a job will take, before anything starts. Writes nothing.

Decides what is reckoned with: the first step's real prompts, every answer at its longest (or at
``--answer-tokens``), one turn per episode; the time of one step, without evaluations, start-up and
refills. What is refused is what the run would refuse (``preparation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig, load_config
from posttrain.errors import UsageError
from posttrain.learner.memory import ModelSize, Parts, host_memory, model_size, rank_memory
from posttrain.planning.calibration import StepTime, calibrate, guess
from posttrain.planning.workload import Workload, largest_row, workload
from posttrain.preparation import Prepared, prepare

_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command was asked for beside the settings."""

    calibrate: bool = False
    price: float = 0.0  # of one GPU hour; 0: no cost is told
    answer_tokens: int = 0  # expected length of an answer; 0: the longest allowed


def make_plan(path: str | None, overrides: Sequence[str], wishes: Wishes) -> dict[str, Any]:
    """All numbers of the plan, in bytes, tokens and seconds. Raises UsageError as the run would."""
    _check(wishes)
    ready = prepare(load_config(path, overrides), None, None)
    config = ready.config
    size = model_size(config.model)
    work = _workload(ready, size, wishes)
    time = calibrate(work, config) if wishes.calibrate else guess(size, work, config)
    learner = _learner(config, size, work)
    return {
        "model": config.model,
        "parameters": size.parameters,
        "active_parameters": size.active,
        "batch": _batch(ready, work),
        "learner": learner,
        "engine": _engine(config, size, work),
        "sync_bytes": _sync_bytes(config, size),
        "time": _time(config, time),
        "cost": _cost(config, time, wishes.price),
    }


def _sync_bytes(config: GrpoConfig, size: ModelSize) -> int:
    lora = config.learner.lora
    adapter = lora is not None and lora.sync == "adapter"
    travels = size.adapter(lora) if adapter and lora is not None else size.parameters
    return travels * _BYTES[config.learner.dtype]


def _check(wishes: Wishes) -> None:
    if wishes.price < 0:
        raise UsageError(f"--price is {wishes.price:g}: give the price of one GPU hour, above 0")
    if wishes.answer_tokens < 0:
        raise UsageError(f"--answer-tokens is {wishes.answer_tokens}: give at least 1")


def _workload(ready: Prepared, size: ModelSize, wishes: Wishes) -> Workload:
    config = ready.config
    prompts = [ready.chat.prompt_ids(task.messages) for task in ready.plan.step(0)]
    room = ready.window - max(len(ids) for ids in prompts)
    longest = min(config.rollout.max_tokens, room)
    if wishes.answer_tokens > longest:
        raise UsageError(
            f"--answer-tokens is {wishes.answer_tokens}: answers here have at most {longest} tokens"
        )
    expected = wishes.answer_tokens or longest
    return workload(prompts, config, size.vocabulary, answer_tokens=expected)


def _batch(ready: Prepared, work: Workload) -> dict[str, Any]:
    settings = ready.config.grpo
    greedy = Algorithm.of(ready.config.algorithm).greedy
    lengths = [len(ids) for ids in work.prompt_ids]
    prompt_tokens = sum(lengths) * settings.group_size
    return {
        "prompts": len(lengths),
        "group_size": settings.group_size,
        "samples": work.samples,
        "episodes": len(lengths) * (settings.group_size + greedy),
        "prompt_tokens_mean": sum(lengths) / len(lengths),
        "prompt_tokens_max": max(lengths),
        "answer_tokens": work.answer_tokens,
        "tokens_per_step": prompt_tokens + work.completion_tokens,
        "loss_tokens_per_step": work.completion_tokens,
        "ranks": ready.config.learner.data_parallel,
        "rows_per_rank": work.rows_per_rank,
        "tokens_per_row": ready.config.learner.tokens_per_row,
    }


def _learner(config: GrpoConfig, size: ModelSize, work: Workload) -> dict[str, Any]:
    import torch

    algorithm = Algorithm.of(config.algorithm)
    row = largest_row(work.batch, size.vocabulary)
    parts = Parts(
        ranks=config.learner.world_size,
        reference=bool(algorithm.reference),
        critic=algorithm.critic,
        cuda=torch.cuda.is_available(),
    )
    memory = rank_memory(size, row, config.learner, parts)
    without = config.learner.model_copy(
        update={"memory_savings": {*config.learner.memory_savings} ^ {"checkpointing"}}
    )
    other = rank_memory(size, row, without, parts)
    saved = ("weights", "float32 weights", "optimiser", "critic")
    return {
        "memory": memory,
        "total": sum(memory.values()),
        "checkpoint_copy": sum(memory.get(name, 0) for name in saved),
        "host": host_memory(size, config.learner, parts),
        "sequence_parallel": config.learner.sequence_parallel,
        "row": asdict(row),
        "checkpointing": config.learner.checkpointing,
        "activations_otherwise": other["activations"],
    }


def _engine(config: GrpoConfig, size: ModelSize, work: Workload) -> dict[str, Any]:
    """Of one server, or of the embedded engine at its fullest."""
    rollout = config.rollout
    per_token = size.kv_bytes(rollout.dtype)
    longest = max(len(ids) for ids in work.prompt_ids) + work.answer_tokens
    vllm = rollout.engine == "vllm"
    at_once = min(work.samples, rollout.max_concurrency)
    kv_cache = int(rollout.kv_cache_gib * 2**30) if vllm else at_once * longest * per_token
    return {
        "engine": rollout.engine,
        "servers": servers(config),
        "weights": size.parameters * _BYTES[rollout.dtype],
        "kv_cache": kv_cache,
        "kv_bytes_per_token": per_token,
        "sequences_that_fit": kv_cache // (per_token * longest),
        "sequence_tokens": longest,
    }


def _time(config: GrpoConfig, time: StepTime) -> dict[str, Any]:
    step_s = step_seconds(config, time)
    return {
        **asdict(time),
        "step_s": step_s,
        "steps": config.grpo.steps,
        "overlap": _overlaps(config),
    } | {"run_s": step_s * config.grpo.steps}


def _cost(config: GrpoConfig, time: StepTime, price: float) -> dict[str, Any] | None:
    if not price:
        return None
    hours = step_seconds(config, time) * config.grpo.steps / 3600
    gpus = config.learner.world_size + servers(config)
    return {"price": price, "gpus": gpus, "hours": hours, "total": price * gpus * hours}


def servers(config: GrpoConfig) -> int:
    """vLLM servers; the embedded engine shares the first rank's device."""
    if config.rollout.engine != "vllm":
        return 0
    return len(config.rollout.urls) or config.rollout.servers


def step_seconds(config: GrpoConfig, time: StepTime) -> float:
    """Engine and learner take turns, or work at once where rollouts may run ahead."""
    both = (time.train_s, time.generation_s)
    return max(both) if _overlaps(config) else sum(both)


def _overlaps(config: GrpoConfig) -> bool:
    return config.grpo.max_lag > 0 and config.rollout.engine == "vllm"
