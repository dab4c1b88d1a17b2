"""The model as the learner sees it: packed tokens in, log-probs of what the model wrote out.

Wraps a Hugging Face causal LM in one ``nn.Module`` whose forward is all that DeepSpeed's hooks must
see. Hidden states are computed for all packed tokens, logits only for the tokens that carry a loss,
and of those one tile at a time (``token_logprobs``). Where ranks share rows (``sequence_parallel``)
each computes its part of both, and all get all log-probs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import UsageError
from posttrain.model import quantised
from posttrain.model.expert_load import Experts, routing_of
from posttrain.model.packed_attention import NAME, Layout, register
from posttrain.model.sequence_parallel import ULYSSES, Shard, share_attention
from posttrain.model.token_logprobs import EntropyMode, TokenLogprobs, chunk_for


class Policy(nn.Module):
    """A causal LM that answers with log-probs; ``chunk`` tokens' worth of logits exist at once."""

    def __init__(self, model: Any, chunk: int, shard: Shard | None = None) -> None:
        super().__init__()
        _refuse_unsupported(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # two passes over the same tokens must agree
        self.model = model
        self.shard = shard
        if shard is not None:
            share_attention(model, shard)
        self.packed = model.config._attn_implementation in (NAME, ULYSSES)
        self.copies = 1 if shard is None else shard.size  # of each row, among the ranks
        self.experts = Experts.of(model)
        self.head = TokenLogprobs(model.get_output_embeddings(), chunk)

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        layout: Layout,
        wanted: tuple[Tensor, Tensor],
        temperature: float,
        entropy: EntropyMode = "off",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs [N], entropies [N] (or [0]) of N tokens, and ``routing_of`` (or [0]); float32.

        ``wanted`` = (before [N], targets [N]): the packed token [T] after which each is written,
        and its id.
        """
        before, targets = wanted
        found = body_pass(
            self.model.base_model,
            (token_ids, position_ids, layout),
            self.shard,
            output_router_logits=self.experts is not None,
        )
        hidden = found.last_hidden_state[0]
        routing = hidden.new_empty(0)
        if self.experts is not None:
            uses = layout.uses if self.shard is None else self.shard.own(layout.uses)
            routing = routing_of(found.router_logits, self.experts.chosen, uses)
        if self.shard is None:
            hidden = hidden.index_select(0, before)
            return *self.head(hidden, targets, temperature, entropy), routing
        mine, at = self.shard.targets(before, len(token_ids))
        logprobs, entropies = self.head(
            hidden.index_select(0, at), targets[mine], temperature, entropy
        )
        if entropy != "off":
            entropies = self.shard.whole(entropies, mine, len(targets))
        return self.shard.whole(logprobs, mine, len(targets)), entropies, routing


def body_pass(
    body: Any, row: tuple[Tensor, Tensor, Layout], shard: Shard | None, **asked: bool
) -> Any:
    """The outputs of a model's body for a row, or for this rank's part of its tokens."""
    token_ids, position_ids, layout = row
    if shard is not None:
        token_ids, position_ids = shard.own(token_ids), shard.own(position_ids)
    return body(
        input_ids=token_ids[None],
        position_ids=position_ids[None],
        use_cache=False,
        **attention_arguments(body.config, layout),
        **{name: True for name, wanted in asked.items() if wanted},
    )


def attention_arguments(config: Any, layout: Layout) -> dict[str, Any]:
    """How a model's attention function is told of the layout: ours, or a varlen kernel."""
    if config._attn_implementation in (NAME, ULYSSES):
        return {"layout": layout}
    return {
        "cu_seq_lens_q": layout.cu_seqlens,
        "cu_seq_lens_k": layout.cu_seqlens,
        "max_length_q": layout.longest,
        "max_length_k": layout.longest,
    }


def _refuse_unsupported(model: Any) -> None:
    """A head that does more than a matrix product would be computed wrongly without a word."""
    config = model.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UsageError(f"{config.model_type}: {name} in the model's head is not supported")
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UsageError(f"{config.model_type}: the output head is not a linear layer")


def load_policy(
    path: str | Path,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    bits: int | None = None,
    shard: Shard | None = None,
) -> Policy:
    """Load a checkpoint folder or hub name for training; with ``bits`` = 4 quantised."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    register()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    more = quantised.loading(dtype, device) if bits else {}
    attention = NAME if shard is not None else attention_for(device, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, attn_implementation=attention, **more
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    if bits:
        quantised.keep_one_format(model)
    else:
        model = model.to(device)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return Policy(model, chunk_for(vocabulary, device), shard)


def attention_for(device: str, dtype: torch.dtype) -> str:
    """flash-attn's varlen kernel where there is one, our padded SDPA elsewhere."""
    from transformers.utils import is_flash_attn_2_available

    usable = device.startswith("cuda") and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if usable else NAME
