"""How the trained weights leave a rank: under which names, whole or as an adapter, by which way.

``whole`` is what every reader gets them from: the engines' snapshot file, a collective over NCCL,
the checkpoint at the end of a run. Under ZeRO-3 one parameter is gathered at a time. Decides too
what the start-up canary moves: what is published, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.config import LoraSettings
from posttrain.learner.snapshot_file import moved, write_checkpoint, write_weights
from posttrain.model import lora, quantised

Gathered = Callable[..., AbstractContextManager[Any]]


@dataclass(slots=True)
class PublishedWeights:
    """The model of one rank, seen from outside. Every method is a collective."""

    model: Any  # a Hugging Face causal LM, with its adapter
    adapter: LoraSettings | None
    rank: int
    gathered: Gathered  # deepspeed.zero.GatheredParameters
    _sender: Any = field(default=None, init=False)

    @property
    def _only_adapter(self) -> bool:
        return self.adapter is not None and self.adapter.sync == "adapter"

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and full tensor, one at a time, in Hugging Face names; a tied head is not repeated.

        An adapter is merged into them. The tensor is whole on every rank until the next one is
        asked for.
        """
        scaling = 0.0 if self.adapter is None else lora.scaling_of(self.adapter)
        for name, parameter, pair in lora.base_weights(self.model):
            with self.gathered([parameter, *pair]):
                yield name, lora.merged(quantised.restored(parameter), pair, scaling)

    def connect(self, urls: Sequence[str], timeout_s: float) -> None:
        """From now on publish over NCCL to the servers at ``urls``, not through a file."""
        from posttrain.learner.nccl_transport import NcclSender

        metadata = [(name, dtype, shape) for name, (dtype, shape) in self._shapes().items()]
        self._sender = NcclSender(
            metadata, self.whole, rank=self.rank, urls=urls, timeout_s=timeout_s
        )

    def send(self, version: int, folder: Path) -> Path | None:
        """Publish; returns where below ``folder`` the weights lie, None if they went over NCCL."""
        if self._only_adapter:
            path = folder / f"adapter-{version}"
            self._write_adapter(path)
            return path
        if self._sender is not None:
            self._sender.send(version)
            return None
        path = folder / f"weights-{version}.safetensors"
        write_weights(path, self._shapes(), self.whole(), write=self.rank == 0)
        return path

    def export(self, folder: Path, source: str) -> None:
        """Write an ordinary Hugging Face checkpoint with the tokenizer of ``source``; atomic.

        With LoRA the weights are merged, and ``<folder>-adapter`` gets the adapter.
        """
        whole = {
            name: tensor.detach().cpu().clone() for name, tensor in self.whole() if self.rank == 0
        }
        if self.rank == 0:
            quantised_too = self.adapter is not None and self.adapter.bits
            model = quantised.plain(self.model) if quantised_too else self.model
            write_checkpoint(folder, model, whole, source)
        if self.adapter is not None:
            self._write_adapter(folder.with_name(folder.name + "-adapter"))

    @contextmanager
    def moved(self, perturb: float) -> Iterator[None]:
        """Inside, what is published is moved by seeded noise; bit for bit as before afterwards."""
        if not perturb:
            yield
            return
        kept: dict[str, Tensor] = {}

        def move(index: int, name: str, parameter: Tensor) -> Tensor:
            kept[name] = parameter.detach().clone()
            # B is zero at the start, and would stay so if it were multiplied.
            return moved(parameter, perturb, seed=index, add=".lora_B." in name)

        self._change(move)
        try:
            yield
        finally:
            self._change(lambda index, name, parameter: kept.pop(name))

    def _change(self, rule: Callable[[int, str, Tensor], Tensor]) -> None:
        for index, (name, parameter) in enumerate(self._movable()):
            # Under ZeRO-3 rank 0 changes the whole tensor and all take their part of it.
            sharded = hasattr(parameter, "ds_id")
            with self.gathered([parameter], modifier_rank=0), torch.no_grad():
                if not sharded or self.rank == 0:
                    parameter.copy_(rule(index, name, parameter))

    def _movable(self) -> list[tuple[str, nn.Parameter]]:
        named = list(self.model.named_parameters())
        if self._only_adapter:
            return [(name, parameter) for name, parameter in named if lora.is_part(name)]
        # What is quantised moves with its adapter.
        return [(name, p) for name, p in named if not quantised.is_quantised(p)]

    def _shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        named = lora.base_weights(self.model)
        return {name: quantised.kind_of(parameter) for name, parameter, _ in named}

    def _write_adapter(self, path: Path) -> None:
        """The adapter's tensors in PEFT's names, from rank 0."""
        tensors = {}
        for name, parameter in lora.adapter_weights(self.model):
            with self.gathered([parameter]):
                if self.rank == 0:
                    tensors[name] = parameter.detach().cpu().clone()
        if self.rank == 0:
            lora.write_adapter(path, self.model, tensors)
