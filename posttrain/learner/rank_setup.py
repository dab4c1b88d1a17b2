"""What a rank is made of: its place among the others, DeepSpeed, the model and its optimiser.

Decides what of DeepSpeed is turned off at import (its messages, and an op that would be compiled at
the first start on a CPU), which of its checks our optimiser is let through, what is put into the
model before it is trained, and which weights decay.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from posttrain.config import GrpoConfig, LearnerSettings
from posttrain.errors import UsageError
from posttrain.learner.guarded_adam import GuardedAdamW
from posttrain.model import lora
from posttrain.model.policy import Policy, load_policy
from posttrain.model.sequence_parallel import Shard

INSTALL = "the learner needs DeepSpeed, which is missing: pip install 'posttrain[deepspeed]'"


def import_deepspeed() -> Any:
    """The package, quiet and ready for training. Raises UsageError where it is missing."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UsageError(INSTALL) from error
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it prints whatever the settings say
    if GuardedAdamW not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(GuardedAdamW)  # it is AdamW
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory op at its first start on a CPU (25 s, and a C++
        # compiler), which only its inference_all_reduce uses. Training goes through gloo.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def join_ranks() -> tuple[int, int, torch.device]:
    """Join the process group the launcher's environment describes, or be alone.

    Returns rank, number of ranks, and this rank's device.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if {"RANK", "MASTER_ADDR"} <= os.environ.keys():  # a launcher sets both
            dist.init_process_group(backend)
        else:
            dist.init_process_group(
                backend,
                store=dist.HashStore(),  # type: ignore[attr-defined]
                rank=0,
                world_size=1,
            )
    return dist.get_rank(), dist.get_world_size(), device


def start_policy(
    config: GrpoConfig, device: torch.device, shard: Shard | None, *, bits: int | None = None
) -> Policy:
    """The checkpoint that the run starts from; with ``bits`` = 4 quantised."""
    dtype = getattr(torch, config.learner.dtype)
    return load_policy(config.model, dtype, str(device), bits=bits, shard=shard)


def trained_policy(config: GrpoConfig, device: torch.device, shard: Shard | None) -> Policy:
    """The start policy with its adapter, if any, and its way of keeping activations."""
    adapter = config.learner.lora
    policy = start_policy(config, device, shard, bits=None if adapter is None else adapter.bits)
    if adapter is not None:
        lora.attach(policy.model, adapter, config.model)
        policy.register_state_dict_post_hook(lora.keep_adapter)
    if config.learner.checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def adam_for(model: nn.Module, settings: LearnerSettings) -> GuardedAdamW:
    """An optimiser of the trained weights. Weight decay on matrices only, as is usual."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = GuardedAdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    adam.clip = settings.max_grad_norm if settings.stage == 0 else 0.0
    return adam
