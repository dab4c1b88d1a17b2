"""Frozen weights in four bits (QLoRA, Dettmers et al., arXiv:2305.14314), by bitsandbytes.

A linear layer's weight is kept as NF4: blocks of 64 values, each a level of a 16-level grid made
for normal distributions, times the block's largest magnitude; these magnitudes are quantised once
more, to 8 bits ("double quantisation"). That is 4.13 bits a weight. Every product restores the
weight in ``learner.dtype`` first. Embedding, output head and norms stay as they are.

The policy that learns is therefore not the checkpoint's, but that of the restored weights, and the
engine must compute with the same ones. Restored weights are ordinary weights: where only an
adapter is synced the learner writes them once, as a checkpoint that the engine starts from
(``job``); a merged sync sends them with the adapter in them.

Left out: paged optimisers (``learner.memory_savings`` has "offload"), and experts of a mixture,
which are no linear layers.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn


def loading(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantise each linear layer while it is read."""
    return {"quantization_config": nf4(dtype), "device_map": {"": device}}


def nf4(dtype: torch.dtype, whole: list[str] | None = None) -> Any:
    """How transformers quantises; products are in ``dtype``.

    ``whole`` are layers to leave as they are, in place of transformers' choice: the output head.
    """
    from transformers import BitsAndBytesConfig

    # It warns of a kernel for inference on a CPU that it would download.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,  # the name is older than four bits
    )


def keep_one_format(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights for inference on a CPU, in place.

    It would at the first pass without gradients, rounding differently from then on, and training
    does not understand the other format.
    """
    for module in model.modules():
        if is_quantised(getattr(module, "weight", None)):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def plain(model: Any) -> Any:
    """The model without weights as it was before it was quantised, to write a checkpoint by."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def is_quantised(parameter: Any) -> bool:
    return getattr(parameter, "quant_state", None) is not None


def restored(parameter: Tensor) -> Tensor:
    """The weight as products see it; what is not quantised comes back as it is."""
    if not is_quantised(parameter):
        return parameter.data
    from bitsandbytes.functional import dequantize_4bit

    state: Any = parameter.quant_state  # type: ignore[attr-defined]
    return dequantize_4bit(parameter.data, state)


def kind_of(parameter: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Precision and shape of the whole, restored weight; of ZeRO-3's parts as well."""
    if is_quantised(parameter):
        state: Any = parameter.quant_state  # type: ignore[attr-defined]
        return state.dtype, tuple(state.shape)
    return parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape))
