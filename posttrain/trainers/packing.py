"""Attention of packed rows for TRL's trainers, where there is no FlashAttention.

TRL lays conversations end to end, with positions that start again and the boundaries in
``cu_seq_lens_q``, and hands them through the model to its attention function. Ours makes a layout
of them, once a step, and calls ``packed_attention``: what stands before a boundary is not seen
behind it, and no mask of T x T is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.packed_attention import Layout, packed_attention
from posttrain.model.policy import attention_for

_NAME = "posttrain_packed_boundaries"
_latest: tuple[Tensor, Layout] | None = None  # every layer of a step asks for the same


def attention(module: nn.Module, *qkv: Tensor, **options: Any) -> tuple[Tensor, None]:
    """The transformers attention interface; options hold ``cu_seq_lens_q`` [S+1]."""
    boundaries = options.pop("cu_seq_lens_q", None)
    layout = None if boundaries is None else _layout(boundaries)
    return packed_attention(module, *qkv, layout=layout, **options)


def _layout(boundaries: Tensor) -> Layout:
    global _latest
    if _latest is None or _latest[0] is not boundaries:
        _latest = boundaries, Layout.of(boundaries.diff().tolist(), boundaries.device)
    return _latest[1]


def packed_implementation(device: str, bf16: bool) -> str:
    """Name of the attention function to load a model with: a varlen kernel, or ours."""
    from transformers import AttentionInterface

    chosen = attention_for(device, torch.bfloat16 if bf16 else torch.float32)
    if chosen == "flash_attention_2":
        return chosen
    AttentionInterface.register(_NAME, attention)
    return _NAME
