"""Decides what DeepSpeed sees as the model: token ids and targets in, one loss out.

Attention is our own function in transformers' interface, so that no mask is built for plain rows
(causality is the kernel's own) and one for all layers where documents must not see each other.
Where positions restart, tokens of a row see only their own document.

Sequence parallelism is DeepSpeed's Ulysses (``UlyssesSPAttentionHF``): a micro-batch's tokens lie
end to end, each rank holds an equal part, and inside attention ranks trade tokens for heads.
Targets are shifted before the tokens are shared, so each rank's loss is that of its own tokens, and
the sum over ranks is the loss.

Compiled is one decoder layer, which all of them share, and only for training: what inductor fuses
is what lies between the matrix products (norms, rotation, SwiGLU). Validation and samples come in
too many shapes for it.

A mixture of experts is balanced layer by layer (``pretrain.models.experts``), with the weight that
its config gives (``router_aux_loss_coef``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import UsageError
from pretrain.models.experts import expert_load, experts_of, load_balancing_loss
from pretrain.packing import IGNORE
from pretrain.training.loss import Head

PLAIN = "pretrain_rows"


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows on the device. ``targets`` are already shifted: what follows each token."""

    ids: Tensor  # [rows, length]
    targets: Tensor  # [rows, length]; IGNORE where there is no loss
    positions: Tensor  # [rows, length]
    apart: Tensor | None  # [rows, 1, length, length] true where a token may look; None: causal

    @classmethod
    def of(cls, ids: Any, labels: Any, positions: Any, device: torch.device) -> MicroBatch:
        """From numpy arrays [rows, length] as a stream's batch has them."""
        follows = torch.full(labels.shape, IGNORE, dtype=torch.int64)
        follows[:, :-1] = torch.from_numpy(labels[:, 1:])
        restarts = (positions[:, 1:] == 0).any()
        apart = documents_apart(torch.from_numpy(positions)) if restarts else None
        tensors = (torch.from_numpy(ids), follows, torch.from_numpy(positions))
        ids, targets, positions = (tensor.to(device, non_blocking=True) for tensor in tensors)
        apart = None if apart is None else apart.to(device, non_blocking=True)
        return cls(ids, targets, positions, apart)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.ids, self.targets, self.positions, self.apart


def documents_apart(positions: Tensor) -> Tensor:
    """[rows, length] -> [rows, 1, length, length]: the same document, and not the future."""
    document = (positions == 0).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]


class Network(nn.Module):
    """A causal language model that answers with its loss."""

    def __init__(self, model: Any, z_loss: float, shard: Any = None) -> None:
        super().__init__()
        prepare(model)
        self.model = model
        self.config = model.config  # where DeepSpeed looks for heads and sharding plans
        self.z_loss = z_loss
        self.shard = shard
        self.head = Head(model.get_output_embeddings())
        self.experts = experts_of(model.config)
        self.load: list[Tensor] = []  # [layers, experts] of each micro-batch since ``take_load``
        self.attention = PLAIN if shard is None else shard.attention(model.config)
        model.set_attn_implementation(self.attention)

    def forward(
        self, ids: Tensor, targets: Tensor, positions: Tensor, apart: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(Loss sum of this rank's tokens, with z-loss and, in training, the experts' balance;
        nll of each token [tokens])."""
        rows = len(ids)
        if self.shard is not None:
            ids, targets, positions = (
                self.shard.own(tensor.flatten())[None] for tensor in (ids, targets, positions)
            )
        told = {"output_router_logits": True} if self.experts else {}
        found = self.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, rows=rows, apart=apart, **told
        )
        hidden = found.last_hidden_state.flatten(0, 1)
        loss, nll = self.head(hidden, targets.flatten(), self.z_loss)
        if self.experts and self.training:
            loss = loss + self._balance(found) * (targets != IGNORE).sum()
        return loss, nll

    def _balance(self, found: Any) -> Tensor:
        """The balance term of one token's loss; each rank balances its own tokens."""
        self.load.append(torch.tensor(expert_load(found, self.experts)))
        return self.config.router_aux_loss_coef * load_balancing_loss(found, self.experts)

    def take_load(self) -> Tensor | None:
        """Mean share of the choices on each expert [layers, experts] since the last call."""
        load, self.load = self.load, []
        return torch.stack(load).mean(0) if load else None

    @contextmanager
    def for_generation(self) -> Iterator[Any]:
        """The model with attention that knows of no sharing: every rank has the whole prompt."""
        self.model.set_attn_implementation(PLAIN)
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(self.attention)


def check_compilable(config: Any) -> None:
    """Raises UsageError for a model whose layers route tokens to experts, which no test has seen
    compiled, and where inductor would find no C++ compiler.
    """
    if experts_of(config):
        raise UsageError(f"compile = true: the experts of {config.model_type} can't be compiled")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UsageError(f"compile = true needs a C++ compiler, and there is no {compiler}")


def compile_layers(model: Any) -> None:
    """Compile each decoder layer's training pass; one program for each shape of a micro-batch."""
    for layer in model.base_model.layers:
        layer.forward = _in_training(layer, torch.compile(layer.forward, dynamic=False))


def _in_training(layer: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    plain = layer.forward

    def forward(*tensors: Any, **told: Any) -> Any:
        return (compiled if layer.training else plain)(*tensors, **told)

    return forward


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **told: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; q, k, v [batch, heads, tokens, width].

    ``told`` are its keywords, and those that ``Network`` hands down: ``rows`` and ``apart``. With
    Ulysses the batch is one, and its tokens are ``rows`` rows end to end.
    """
    rows, apart, sliding_window = (told.get(k) for k in ("rows", "apart", "sliding_window"))
    batch, length = query.shape[0], query.shape[2]
    if rows is not None and rows > batch:
        query, key, value = (_apart_rows(x, rows) for x in (query, key, value))
    if sliding_window is not None and key.shape[2] > sliding_window:
        raise UsageError(f"rows are longer than the model's sliding window of {sliding_window}")
    causal = apart is None and query.shape[2] == key.shape[2]
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=apart,
        is_causal=causal and query.shape[2] > 1,
        scale=told.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).reshape(batch, length, *out.shape[1::2]), None


def _apart_rows(x: Tensor, rows: int) -> Tensor:
    """[1, heads, rows * length, width] -> [rows, heads, length, width]"""
    return x[0].unflatten(1, (rows, -1)).transpose(0, 1)


def with_weights_in(model: Any, dtype: torch.dtype) -> Any:
    """The model itself; its buffers stay as they are: rotary frequencies in bfloat16 would be off
    by up to 0.4 %, and those of the saved model are not.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def prepare(model: Any) -> None:
    """Makes our attention known. Raises UsageError where the head does more than a matrix product:
    that would be trained wrongly without a word.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PLAIN, rows_attention)  # without a mask function: none is built
    kind = model.config.model_type
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UsageError(f"model {kind}: {name} in its head is not supported")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise UsageError(f"model {kind}: its output head is not a linear layer without bias")
