"""Which GPU each process of a job computes on, on the orchestrator's machine.

Rank i of the learner has GPU i. Servers have the GPUs after those, one each; where too few are left
they share what is left, and where none is left the ranks' own. Only where no GPU is used twice can
weights go over NCCL, which takes no two members of a group on one GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.config import GrpoConfig
from posttrain.errors import UsageError

LISTEN = "POSTTRAIN_LEARNER_LISTEN"  # set: no rank of the learner is started on this machine


@dataclass(frozen=True, slots=True)
class Placement:
    """GPUs are counted as this process sees them."""

    servers: tuple[int, ...]  # the GPU of each; empty without GPUs
    apart: bool  # no GPU is used twice


def divide(gpus: int, ranks: int, servers: int) -> Placement:
    """``ranks`` and ``servers`` of this machine. Raises UsageError for more ranks than GPUs."""
    if not gpus:
        return Placement((), apart=False)
    if ranks > gpus:
        raise UsageError(
            f"learner.ranks = {ranks}, and this machine has {gpus} GPU(s): each rank needs one of "
            "its own"
        )
    free = range(ranks, gpus) or range(gpus)
    chosen = tuple(free[i % len(free)] for i in range(servers))
    return Placement(chosen, apart=ranks + servers <= gpus)


def placement_of(config: GrpoConfig) -> Placement:
    """Of the job's processes over this machine's GPUs. Raises UsageError as ``divide`` does."""
    import torch

    ranks = 0 if os.environ.get(LISTEN) else config.learner.world_size
    servers = 0 if config.rollout.urls else config.rollout.servers
    return divide(torch.cuda.device_count(), ranks, servers)


def only(gpu: int) -> Mapping[str, str]:
    """The environment of a process that is to see none but this one of our GPUs."""
    ours = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"CUDA_VISIBLE_DEVICES": ours.split(",")[gpu] if ours else str(gpu)}
