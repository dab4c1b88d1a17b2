"""The weight-transfer engine inside vLLM: takes a snapshot's safetensors file, all-or-nothing.

Decides how new weights enter a running model. A file is mapped, not read, and every tensor goes
through vLLM's layerwise reload, the only path that respects weights that were packed for the CPU's
matrix kernels. Three things vLLM does not do are done here:

* A tensor that the file lacks would silently keep its old value. Here it is an error.
* A tied ``lm_head`` on CPU computes with a packed copy of the embedding that the reload does not
  renew: the server would answer 200 and sample from a mixture of two versions. Here every head is
  packed again after a reload.
* The experts of a mixture are packed for the CPU's kernel at the first load only. A reload would
  put plain weights where packed ones are expected. Here they are packed at every load.

An adapter (LoRA) enters beside the weights, and in the place of the adapter before it.

Loaded by ``--worker-extension-cls posttrain.engines.vllm_worker.WorkerExtension``: importing this
module in a vLLM worker registers the engine, with or without an installed package. Runs in the
server's process only; the orchestrator never imports it.
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
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
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


def multiply_by_one_adapter_at_once() -> None:
    """Have a CPU multiply all tokens by the adapter's matrices, where they all have the same one.

    vLLM's own operations for CPUs first copy the matrices for each token: for 3,584 tokens, rank 16
    and a layer of 192 x 576 that takes 343 ms, and this 78. And they fail, and the server with
    them, when log-probs of a prompt are asked for beside other requests: the head then sees each
    token of the prompt, but is told of one adapter for each request.
    """
    for module in (lora_ops, punica_cpu):
        module.bgmv_shrink = _shrink
        module.bgmv_expand = _expand
        module.bgmv_expand_slice = _expand_slice


def _shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    product = scaling * _product(inputs, weights, output.dtype, indices)
    output[:, : product.shape[1]] = product


def _expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    width = min(output.shape[1], weights.shape[-2])  # one may be padded
    _expand_slice(inputs, weights[..., :width, :], output, indices, 0, width, add_inputs)


def _expand_slice(  # the signature that vLLM calls
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    part = output[:, slice_offset : slice_offset + slice_size]
    product = _product(inputs, weights, output.dtype, indices)
    part.copy_(part + product if add_inputs else product)


def _product(
    inputs: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype, indices: torch.Tensor
) -> torch.Tensor:
    """Inputs [T, i] times weights [adapters, 1, o, i], for each token those it names: [T, o]."""
    inputs = inputs.to(dtype)
    if len(indices) and bool((indices == indices[0]).all()):
        return inputs @ weights[int(indices[0])].flatten(0, -2).to(dtype).T
    return torch.einsum("ti,toi->to", inputs, weights[indices].flatten(1, -2).to(dtype))


multiply_by_one_adapter_at_once()


def pack_experts_at_every_load() -> None:
    """Have a CPU pack the experts' weights also when they are loaded a second time."""
    set_up = UnquantizedFusedMoEMethod._setup_kernel

    def set_up_and_pack(
        self: Any, layer: torch.nn.Module, w13: torch.Tensor, w2: torch.Tensor
    ) -> None:
        again = self.moe_kernel is not None
        set_up(self, layer, w13, w2)
        if again and w13.device.type == "cpu":
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = set_up_and_pack


pack_experts_at_every_load()


class WorkerExtension:
    """Named on vLLM's command line: its workers import this module and get this method."""

    model_runner: Any  # the worker's

    def replace_adapter(self, path: str) -> None:
        """Put the adapter in the folder ``path`` in the place of the one that is loaded.

        Requests keep the adapter's number, so those in flight go on with the new one.
        """
        manager = self.model_runner.lora_manager
        (number,) = manager.list_adapters()
        manager.add_adapter(LoRARequest("policy", number, path, load_inplace=True))


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
