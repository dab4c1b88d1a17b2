"""The weight-transfer engine inside vLLM: takes a snapshot's safetensors file, all-or-nothing.

Decides how new weights enter a running model. A file is mapped, not read, and every tensor goes
through vLLM's layerwise reload, the only path that respects weights that were packed for the CPU's
matrix kernels. Two things vLLM does not do are done here:

* A tensor that the file lacks would silently keep its old value. Here it is an error.
* A tied ``lm_head`` on CPU computes with a packed copy of the embedding that the reload does not
  renew: the server would answer 200 and sample from a mixture of two versions. Here every head is
  packed again after a reload.

Loaded by ``--worker-extension-cls posttrain.vllm_worker.WorkerExtension``: importing this module in
a vLLM worker registers the engine, with or without an installed package. Runs in the server's
process only; the orchestrator never imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

BACKEND = "posttrain_file"


def use_amx_or_leave_it() -> None:
    """Ask the kernel for AMX's tile registers, which vLLM's bfloat16 attention takes for granted.

    A process that uses them without having asked is killed (SIGILL); oneDNN asks when it is about
    to multiply with them, which may be later. Where the kernel refuses, vLLM is told that there
    is no AMX.
    """
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        torch.cpu._is_amx_tile_supported = lambda: False


use_amx_or_leave_it()


class WorkerExtension:
    """Named on vLLM's command line so that its workers import this module; adds nothing itself."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on before the first transfer."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One transfer: a safetensors file, readable by this process, in Hugging Face names."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """vLLM's four phases over a file. Any error leaves the model unusable: restart the server."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Files need no rendezvous."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's own, without waiting for an accelerator that a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        self.model.load_weights(_tensors(Path(update_info.path)))

    def finish_weight_update(self) -> None:
        missing = unfilled(self.model)
        if missing:
            raise RuntimeError(
                f"the snapshot left {len(missing)} modules without all their weights, "
                f"the first: {', '.join(missing[:5])}"
            )
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_heads(self.model)

    def shutdown(self) -> None:
        """Nothing is held between transfers."""


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and mapped tensor of everything in the file."""
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            yield name, file.get_tensor(name)


def unfilled(model: torch.nn.Module) -> list[str]:
    """Modules that a reload has begun and not completed, by name.

    A vocabulary padded for the kernels counts as complete with fewer elements than it has room
    for, attention layers are completed later, and a tied head has nothing of its own to load.
    """
    names = []
    tied = _tied_heads(model)
    for name, module in model.named_modules():
        info = get_layerwise_info(module)
        if not info.can_load() or is_deferred_attention_layer(module):
            continue  # complete already, or completed by the reload's last phase
        wanted = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        padded = isinstance(module, VocabParallelEmbedding) and info.load_numel > 0
        if info.load_numel < wanted and not padded and module not in tied:
            names.append(name)
    return names


def repack_heads(model: torch.nn.Module) -> None:
    """Make every output head compute with its present weights, not a packed copy of older ones."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _tied_heads(model: torch.nn.Module) -> set[torch.nn.Module]:
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return set()
    return {module for module in model.modules() if isinstance(module, ParallelLMHead)}


def register() -> None:
    """Make the engine known to vLLM in this process; again is harmless."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)


register()
