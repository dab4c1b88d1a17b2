"""RL post-training: a vLLM rollout server, a DeepSpeed learner, and the loop between them.

    run = posttrain.grpo(model=..., env=..., reward=[...], steps=100, run_dir="runs/first")

Names are loaded when they are first used, so that ``import posttrain`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from posttrain.shadowing import check_import_path

if TYPE_CHECKING:
    from posttrain.api import Run, evaluate, grpo, resume, run_config
    from posttrain.config import load_config
    from posttrain.errors import RunError, UsageError
    from posttrain.serving.background import served
    from posttrain.trainers.preference import train_preferences
    from posttrain.trainers.process_reward_model import train_process_reward_model
    from posttrain.trainers.reward_model import train_reward_model
    from posttrain.trainers.sft import sft

check_import_path()  # a user's own folder called envs or rewards: say so, before it fails to import

_HOMES = {
    "Run": "posttrain.api",
    "evaluate": "posttrain.api",
    "grpo": "posttrain.api",
    "resume": "posttrain.api",
    "run_config": "posttrain.api",
    "load_config": "posttrain.config",
    "RunError": "posttrain.errors",
    "UsageError": "posttrain.errors",
    "served": "posttrain.serving.background",
    "sft": "posttrain.trainers.sft",
    "train_preferences": "posttrain.trainers.preference",
    "train_process_reward_model": "posttrain.trainers.process_reward_model",
    "train_reward_model": "posttrain.trainers.reward_model",
}

__all__ = [
    "Run",
    "RunError",
    "UsageError",
    "evaluate",
    "grpo",
    "load_config",
    "resume",
    "run_config",
    "served",
    "sft",
    "train_preferences",
    "train_process_reward_model",
    "train_reward_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
