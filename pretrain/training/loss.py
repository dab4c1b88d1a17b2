"""Cross entropy from hidden states without the matrix of logits, and the z-loss.

Decides where the gradient of the head is made: in the forward pass, chunk by chunk of tokens, as
long as a chunk's logits exist (Liger, arXiv:2410.10989). What is kept is the gradient of the hidden
states and of the weight; the backward pass multiplies them by a number. At most ``chunk`` x
vocabulary logits exist, in float32, where transformers' own loss makes all of them, several times.

With logits z [V] of a token, log Z = logsumexp(z), and weight c of the z-loss (PaLM,
arXiv:2204.02311, section 5; c = 1e-4 there), which keeps log Z near 0:

    loss = log Z - z_target + c (log Z)^2
    d loss / dz = softmax(z) (1 + 2 c log Z) - onehot(target)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.packing import IGNORE


class Head(nn.Module):
    """The language-model head with its loss; shares the model's own weight, adds no parameter."""

    def __init__(self, projection: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        # Registered here as well, so that ZeRO-3 gathers it around this module's passes.
        self.weight = projection.weight

    def forward(self, hidden: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        """hidden [N, H], targets [N] or IGNORE -> (loss sum, for its gradient; nll of each [N])."""
        loss, nll = _ChunkedLoss.apply(hidden, self.weight, targets, z_loss)
        return loss, nll.detach()


def chunk_for(vocabulary: int, device: str) -> int:
    """Tokens whose logits exist at once: 8 MiB of float32 on a CPU, 512 MiB on a GPU."""
    elements = 2**27 if device == "cuda" else 2**21
    return max(16, elements // vocabulary)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        learns, exact = any(ctx.needs_input_grad[:2]), torch.float32
        chunk = chunk_for(len(weight), hidden.device.type)
        d_hidden = torch.empty_like(hidden) if learns else None
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if learns else None
        nll = torch.empty(len(targets), dtype=exact, device=hidden.device)
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        for at in range(0, len(targets), chunk):
            part = slice(at, at + chunk)
            h, t = hidden[part], targets[part]
            counts = (t != IGNORE).to(exact)
            t = t.clamp(min=0)[:, None]
            z = torch.mm(h, weight.T).to(exact)
            chosen, highest = z.gather(1, t)[:, 0], z.amax(1)
            # One pass over the logits; the largest probability is exp(highest - log Z).
            p = torch.softmax(z, 1, out=z)
            log_z = highest - p.amax(1).log()
            nll[part] = (log_z - chosen) * counts
            loss += nll[part].sum() + z_loss * (counts * log_z.square()).sum()
            if d_hidden is None or d_weight is None:
                continue
            d_z = p.mul_((counts * (1.0 + 2.0 * z_loss * log_z))[:, None])
            low = d_z.scatter_add_(1, t, -counts[:, None]).to(weight.dtype)
            torch.mm(low, weight, out=d_hidden[part])
            _add_product(d_weight, low.T, h)
        if d_hidden is not None and d_weight is not None:
            ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0]
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale.to(d_weight.dtype), None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with a total in float32. A GPU does not round the product before."""
    if total.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    elif a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
