"""The model as the learner sees it: packed tokens in, log-probs of what the model wrote out.

Wraps a Hugging Face causal LM in one ``nn.Module`` whose forward is all that DeepSpeed's hooks must
see. Hidden states are computed for all packed tokens, logits only for the tokens that carry a loss,
and those in chunks: the [tokens, vocabulary] float32 matrix never exists, in either direction.
The backward pass computes each chunk's logits again, and with p = softmax(z / temperature):

    d logprob / dz = (onehot(target) - p) / temperature
    d entropy / dz = -p (log p + entropy) / temperature
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.errors import UsageError
from posttrain.packed_attention import NAME, Layout, register

EntropyMode = Literal["off", "metric", "loss"]  # not computed; without gradient; with gradient


class Policy(nn.Module):
    """A causal LM that answers with log-probs; logits exist for ``chunk`` tokens at once."""

    def __init__(self, model: Any, chunk: int) -> None:
        super().__init__()
        _refuse_unsupported(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # two passes over the same tokens must agree
        self.model = model
        self.packed = model.config._attn_implementation == NAME
        self.head = TokenLogprobs(model.get_output_embeddings(), chunk)

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        layout: Layout,
        wanted: tuple[Tensor, Tensor],
        temperature: float,
        entropy: EntropyMode = "off",
    ) -> tuple[Tensor, Tensor]:
        """Log-probs [N] and entropies [N] (or [0]) of N tokens, in float32.

        ``wanted`` = (before [N], targets [N]): the packed token [T] after which each is written,
        and its id.
        """
        hidden = self.model.base_model(
            input_ids=token_ids[None],
            position_ids=position_ids[None],
            use_cache=False,
            **attention_arguments(self.model.config, layout),
        ).last_hidden_state[0]
        before, targets = wanted
        return self.head(hidden.index_select(0, before), targets, temperature, entropy)


def attention_arguments(config: Any, layout: Layout) -> dict[str, Any]:
    """How a model's attention function is told of the layout: ours, or a varlen kernel."""
    if config._attn_implementation == NAME:
        return {"layout": layout}
    return {
        "cu_seq_lens_q": layout.cu_seqlens,
        "cu_seq_lens_k": layout.cu_seqlens,
        "max_length_q": layout.longest,
        "max_length_k": layout.longest,
    }


class TokenLogprobs(nn.Module):
    """The language-model head. Shares the model's own weight: it adds no parameter."""

    def __init__(self, projection: nn.Linear, chunk: int) -> None:
        super().__init__()
        # Registered here as well, so that ZeRO-3 gathers it around this module's two passes.
        self.weight = projection.weight
        self.bias = projection.bias
        self.chunk = chunk

    def forward(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy: EntropyMode
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = _ChunkedLogprobs.apply(
            hidden, self.weight, self.bias, targets, temperature, self.chunk, entropy
        )
        return logprobs, entropies if entropy == "loss" else entropies.detach()


class _ChunkedLogprobs(torch.autograd.Function):
    """hidden [N, H], weight [V, H], bias [V], targets [N] -> log-probs [N], entropies [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        entropy: EntropyMode,
    ) -> tuple[Tensor, Tensor]:
        n = len(targets)
        logprobs = torch.empty(n, device=hidden.device)
        entropies = torch.empty(0 if entropy == "off" else n, device=hidden.device)
        for part in _parts(n, chunk):
            log_p = _log_softmax(hidden[part], weight, bias, temperature)
            logprobs[part] = log_p.gather(1, targets[part, None])[:, 0]
            if entropy != "off":
                entropies[part] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.save_for_backward(hidden, weight, bias, targets, entropies)
        ctx.settings = (temperature, chunk, entropy)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies = ctx.saved_tensors
        temperature, chunk, entropy = ctx.settings
        d_hidden = torch.empty_like(hidden)
        d_weight = None  # a frozen head has none
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for part in _parts(len(targets), chunk):
            log_p = _log_softmax(hidden[part], weight, bias, temperature)
            d_z = log_p.exp()
            d_logprob = grads[0][part, None]
            if entropy == "loss":
                d_entropy = grads[1][part, None]
                d_z.mul_(log_p.add_(entropies[part, None]).mul_(d_entropy).add_(d_logprob)).neg_()
            else:
                d_z.mul_(-d_logprob)
            d_z.scatter_add_(1, targets[part, None], d_logprob)
            d_z.div_(temperature)
            if d_bias is not None:
                d_bias += d_z.sum(0)
            low = d_z.to(hidden.dtype)
            d_hidden[part] = low @ weight
            if d_weight is not None:
                d_weight += low.T @ hidden[part]
        d_bias = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def _parts(n: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """[n, H] -> [n, V] float32."""
    logits = F.linear(hidden, weight, bias).float()
    return torch.log_softmax(logits.div_(temperature), dim=-1)


def _refuse_unsupported(model: Any) -> None:
    """A head that does more than a matrix product would be computed wrongly without a word."""
    config = model.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UsageError(f"{config.model_type}: {name} in the model's head is not supported")
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UsageError(f"{config.model_type}: the output head is not a linear layer")


def load_policy(path: str | Path, dtype: torch.dtype, device: str = "cpu") -> Policy:
    """Load a checkpoint folder or hub name for training."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    register()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, attn_implementation=attention_for(device, dtype)
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    return Policy(model.to(device), chunk_for(model.get_output_embeddings().weight.shape[0]))


def chunk_for(vocabulary: int) -> int:
    """Tokens whose logits exist at once: 256 MiB of float32, and at most 1,024 tokens."""
    return min(1024, max(32, 2**26 // vocabulary))


def attention_for(device: str, dtype: torch.dtype) -> str:
    """flash-attn's varlen kernel where there is one, our padded SDPA elsewhere."""
    from transformers.utils import is_flash_attn_2_available

    usable = device.startswith("cuda") and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if usable else NAME
