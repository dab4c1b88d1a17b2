"""Ulysses: several ranks share each row, for contexts that one rank has no memory for.

Of a row's T packed tokens each of S ranks holds T / S through embedding, linear layers, norms and
head. Inside attention they trade (one all-to-all for each of q, k, v, and one back): there a rank
has all T tokens for its share of the heads, so that attention over packed rows stays what it is
(Jacobs et al., arXiv:2309.14509). The trade is DeepSpeed's ``UlyssesSPAttentionHF``
(arXiv:2506.13996), around our packed attention on every device: heads / S must be whole, and S
must divide the key-value heads, or they S (then they are repeated).

Log-probs of the row's N targets are computed where the token before each lies, and then given to
all S ranks. Each computes the whole row's loss, but only the gradient of its own targets goes back
through it. So the sum of all ranks' gradients is that of the loss, as without sharing, and a rank's
share of the weights (ZeRO) is the same: no loss, and no averaging factor, knows of S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.model.packed_attention import NAME, packed_attention

ULYSSES = NAME + "_ulysses"


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's place among the ranks that share a row."""

    rank: int
    size: int
    group: Any

    @classmethod
    def join(cls, size: int) -> Shard | None:
        """Form groups of ``size`` consecutive ranks; None where nothing is shared. Collective."""
        if size == 1:
            return None
        import deepspeed

        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False)
        rank, world = dist.get_rank(), dist.get_world_size()
        groups = [dist.new_group(range(at, at + size)) for at in range(0, world, size)]
        return cls(rank % size, size, groups[rank // size])

    def own(self, tokens_T: Tensor) -> Tensor:
        """This rank's part of something that every packed token has; ``size`` divides T."""
        each = len(tokens_T) // self.size
        return tokens_T[self.rank * each : (self.rank + 1) * each]

    def targets(self, before: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Which targets [M of N] follow a token of this rank, and that token in its part [M]."""
        each = n_tokens // self.size
        mine = (before // each == self.rank).nonzero()[:, 0]
        return mine, before[mine] - self.rank * each

    def whole(self, values: Tensor, mine: Tensor, n: int) -> Tensor:
        """Values [M] of each rank's own targets -> of all N, on every rank."""
        result: Tensor = _Whole.apply(values, mine, n, self.group)
        return result


class _Whole(torch.autograd.Function):
    """Everybody has the same gradient of the whole; each takes that of its own part back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mine: Tensor, n: int, group: Any) -> Tensor:
        ctx.save_for_backward(mine)
        whole = values.new_zeros(n).index_copy_(0, mine, values)
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (mine,) = ctx.saved_tensors
        return grads[0].index_select(0, mine), None, None, None


def share_attention(model: Any, shard: Shard) -> None:
    """Have the model's attention layers trade tokens for heads within the group."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    heads, key_heads, width = head_sizes(config)
    trade = UlyssesSPAttentionHF(
        attn=packed_attention,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=width,
        kv_head_count=key_heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=shard.group,
        seq_length_is_variable=True,
    )

    def attention(module: nn.Module, *tensors: Tensor, **keywords: Any) -> tuple[Tensor, None]:
        output, _ = trade(module, *tensors, **keywords)
        return output, None

    AttentionInterface.register(ULYSSES, attention)
    model.set_attn_implementation(ULYSSES)


def head_sizes(config: Any) -> tuple[int, int, int]:
    """Heads, key-value heads, and the width of one."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def can_share(config: Any, size: int) -> bool:
    """Whether the heads of a model can be divided over ``size`` ranks."""
    heads, key_heads, _ = head_sizes(config)
    return heads % size == 0 and (key_heads % size == 0 or size % key_heads == 0)
