"""Attention over packed rows on any device, with no mask and no flash-attn.

Linear layers see the packed tokens [T]. Only inside attention are q, k and v laid out as
[sequences, heads, longest, head_dim], padded on the right, for one causal SDPA call: under
causality no real token can look at what stands to its right, so no mask is needed and the fused
kernel is used. The result is laid back end to end. Sequences of one call differ at most by a
factor of two in length, so that padding never more than doubles the work.

Sequences may share tokens: the answers of a group have one prompt, whose tokens then are laid out
once and go through the linear layers once. Attention sees each sequence whole all the same; the
gradients of a shared token's key and value are added up.

On CPU in bfloat16 the call is made in float32 where sequences are short: at 64 tokens SDPA's CPU
kernel takes half the time in float32, and it is the more exact of the two. From 512 tokens on,
with AMX, bfloat16 is the faster (by 1.3 at 512, 1.7 at 8,192), and keeps smaller activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "posttrain_packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each packed token sits in the padded calls.

    ``calls`` holds (sequences, longest) of each call, both rounded up by ``repeated_size``.
    ``padded`` [P] names the packed token that fills each padded slot (where it is padding, some
    token); ``packed`` [T] is one slot of each packed token; P = sum of sequences x longest.
    ``again`` [A] lists the other slots of tokens that several sequences share. ``uses`` [T] counts
    the sequences that a packed token is part of, without filling.
    """

    calls: tuple[tuple[int, int], ...]
    padded: Tensor
    packed: Tensor
    again: Tensor
    longest: int
    cu_seqlens: Tensor  # [S+1] int32, for varlen kernels
    uses: Tensor  # float32

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        shared: Tensor | None = None,
        filling: int = 0,
    ) -> Layout:
        """Group the sequences of a row by length.

        ``shared`` [sum of lengths] names the packed token behind each token of each sequence;
        None: no two are the same. The last ``filling`` sequences are filling.
        """
        sizes = torch.as_tensor(lengths, dtype=torch.int64)
        starts = torch.cumsum(sizes, 0) - sizes
        calls, padded, slots = [], [], torch.empty(int(sizes.sum()), dtype=torch.int64)
        offset = 0
        for members in _alike(sizes.tolist()):
            n, rows = len(members), repeated_size(len(members))
            longest = repeated_size(int(sizes[members].max()))
            column = torch.arange(longest)
            inside = column < sizes[members, None]
            token = starts[members, None] + torch.minimum(column, sizes[members, None] - 1)
            slot = offset + torch.arange(n * longest).view(n, longest)
            slots[token[inside]] = slot[inside]
            padded += [token.flatten(), token.new_zeros((rows - n) * longest)]
            calls.append((rows, longest))
            offset += rows * longest
        ends = F.pad(torch.cumsum(sizes, 0), (1, 0)).to(torch.int32)
        filled, packed, again = torch.cat(padded), slots, slots[:0]
        if shared is not None:
            packed = torch.empty(int(shared.max()) + 1, dtype=torch.int64)
            packed[shared] = slots  # whichever slot is written last stands for the token
            filled, again = shared[filled], slots[packed[shared] != slots]
        real = torch.arange(int(sizes.sum())) if shared is None else shared
        real = real[: int(sizes[: len(sizes) - filling].sum())]
        return cls(
            tuple(calls),
            filled.to(device),
            packed.to(device),
            again.to(device),
            int(sizes.max()),
            ends.to(device),
            torch.bincount(real, minlength=len(packed)).float().to(device),
        )


def repeated_size(n: int) -> int:
    """``n`` or slightly more: eight sizes per power of two, so that shapes come again.

    At most one seventh is added (from 8 on). Nothing that is computed of the real tokens changes;
    what changes is that memory and compiled kernels of earlier steps fit later ones.
    """
    step = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step


def _alike(lengths: list[int]) -> list[list[int]]:
    """Indices in groups whose lengths differ at most by a factor of two, longest group first."""
    groups: list[list[int]] = []
    ceiling = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or 2 * lengths[i] < ceiling:
            groups.append([])
            ceiling = lengths[i]
        groups[-1].append(i)
    return groups


class _Pad(torch.autograd.Function):
    """packed [T, ...] -> padded [P, ...]. Padding has no gradient, so backward takes one slot of
    each token, and adds the others of those that have several."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layout, grad = ctx.layout, grads[0]
        total = grad.index_select(0, layout.packed)
        if len(layout.again):
            total.index_add_(0, layout.padded[layout.again], grad.index_select(0, layout.again))
        return total, None


class _Unpad(torch.autograd.Function):
    """padded [P, ...] -> packed [T, ...]; the gradient of padding is exactly zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.packed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        padded = grad.new_zeros((len(ctx.layout.padded), *grad.shape[1:]))
        return padded.index_copy_(0, ctx.layout.packed, grad), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The transformers attention interface; q, k, v are [1, heads, T, head_dim].

    Dropout is ignored: a policy whose forward passes differ has no importance ratio.
    Raises ValueError when the model did not hand ``layout`` down, or when a sliding window would
    cut a sequence.
    """
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} does not pass keyword arguments to its attention function: "
            "this architecture cannot be packed"
        )
    if sliding_window is not None and layout.longest > sliding_window:
        raise ValueError(
            f"a sequence of {layout.longest} tokens is longer than the model's sliding window of "
            f"{sliding_window}, which packed attention does not cut"
        )
    dtype = query.dtype
    work = dtype if query.device.type != "cpu" else _precision_on_cpu(dtype, layout.longest)
    q, k, v = (
        _Pad.apply(x[0].transpose(0, 1).to(work), layout).split([n * m for n, m in layout.calls])
        for x in (query, key, value)
    )
    outputs = []
    for i, (n, longest) in enumerate(layout.calls):
        q_i, k_i, v_i = (x[i].view(n, longest, *x[i].shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q_i, k_i, v_i, is_causal=True, scale=scaling, enable_gqa=q_i.shape[1] != k_i.shape[1]
        )
        outputs.append(out.transpose(1, 2).reshape(n * longest, *out.shape[1::2]))
    return _Unpad.apply(torch.cat(outputs), layout).to(dtype)[None], None


def _precision_on_cpu(dtype: torch.dtype, longest: int) -> torch.dtype:
    low_is_fast = longest >= _LONG and torch.cpu._is_amx_tile_supported()
    return dtype if low_is_fast else torch.float32


_LONG = 512  # tokens


def register() -> None:
    """Make ``attn_implementation=NAME`` known; without a mask function no mask is built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
