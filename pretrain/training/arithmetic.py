"""Decides what a model costs: operations for MFU, and memory, before anything is built.

Operations of a trained token: 6 for each weight of a matrix product (PaLM, arXiv:2204.02311,
appendix B) and 12 L T for each of the heads' widths, the attention's own products, from which the
saving of a causal mask is not taken off. The embedding is no product, the head is one; of a
mixture's experts those count that a token goes to. ``pretrain plan`` and ``pretrain model`` count
the same.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch

from pretrain.errors import UsageError
from pretrain.models.experts import expert_count, experts_of
from pretrain.training.pipeline import cuts_of

# Dense bfloat16, 10^12 operations per second, from the makers' data sheets.
_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}


def matrix_parameters(model: Any) -> int:
    """Weights that a token meets, without the embedding; a tied one counts once, as the head."""
    chosen = experts_of(model.config)
    total = 0.0
    for name, weight in model.named_parameters():
        idle = chosen and ".experts." in name
        total += weight.numel() * (chosen / expert_count(model.config) if idle else 1)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return int(total - (0 if tied else model.get_input_embeddings().weight.numel()))


def flops_per_token(parameters: int, config: Any, length: int) -> float:
    """Forward and backward, for rows of ``length`` tokens."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 6.0 * parameters + 12.0 * config.num_hidden_layers * heads * width * length


def peak(dtype: torch.dtype, device: torch.device) -> tuple[float, str]:
    """Operations per second of one rank's device, and where the number is from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, tflops in _PEAK_TFLOPS.items():
            if known in name and dtype is torch.bfloat16:
                return tflops * 1e12, f"data sheet of {known}"
    a = torch.randn(1024, 1024, device=device).to(dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best, "measured, a product of 1024 x 1024"


def needed_bytes(
    model_config: Any, *, stage: int, ranks: int, low: bool, micro_tokens: int, stages: int = 1
) -> int:
    """Per rank: weights, gradients, optimiser, and activations of a micro-batch, roughly.

    Of ``stages`` of a pipeline the first holds as many micro-batches as there are stages.
    """
    c = model_config
    heads, key_heads = c.num_attention_heads, c.num_key_value_heads
    width = getattr(c, "head_dim", None) or c.hidden_size // heads
    wide = expert_count(c) * getattr(c, "moe_intermediate_size", c.intermediate_size)
    feed_forward = 3 * c.hidden_size * (wide or c.intermediate_size)
    layer = 2 * c.hidden_size * width * (heads + key_heads) + feed_forward
    embeddings = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    cuts = cuts_of(c.num_hidden_layers, c.vocab_size * c.hidden_size / layer, stages)
    parameters = max(end - start for start, end in pairwise(cuts)) * layer + embeddings
    each, ranks = (2 if low else 4), max(1, ranks // stages)
    stage = max(1, stage) if stages > 1 else stage
    weights = each / (ranks if stage == 3 else 1)
    gradients = 4 / (ranks if stage >= 2 else 1)
    optimiser = (12 if low else 8) / (ranks if stage >= 1 else 1)
    # Kept for the backward pass: inputs of the products and norms.
    kept = 8 * c.hidden_size + 4 * c.intermediate_size + 4 * width * (heads + key_heads)
    activations = c.num_hidden_layers * kept * micro_tokens * each
    return int(parameters * (weights + gradients + optimiser)) + activations


def free_bytes(device: str) -> int:
    """Of a GPU, or what the host says is available."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    with open("/proc/meminfo") as file:
        line = next(line for line in file if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def check_memory(needed: int, free: int, ranks_here: int) -> None:
    """Raises UsageError before a model is built that can't be trained here."""
    if needed * ranks_here > free:
        raise UsageError(
            f"training this model needs about {needed / 2**30:.1f} GiB on each of {ranks_here} "
            f"rank(s) here, and {free / 2**30:.1f} GiB are free: take a smaller model, more ranks "
            "with a higher parallel.zero_stage, or fewer parallel.micro_tokens"
        )
