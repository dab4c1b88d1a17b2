"""Decides how weights become 8 or 4 bits: rounded in groups, in the compressed-tensors format.

    w ~ s q      q an integer of 8 or 4 bits, s one number for each row (8) or each 32 columns (4)

s is chosen for each group among a few shrunken ranges, the one with the least squared error: a
single large weight does not cost all its neighbours their precision. No data is needed.

The format is read by vLLM, with its own kernels on CPUs and GPUs, and by transformers, which
computes with the weights unpacked. ``int8`` also rounds what enters a layer, to 8 bits by a scale
for each token, because that is the form vLLM has kernels for everywhere; ``int4`` rounds weights
alone. Embeddings and the output head keep their precision.

Left out: methods that need calibration data (GPTQ, AWQ), whose gain is largest below 4 bits.
torchao was tried: its portable 4-bit tensor takes 8 bits on disk, the packed ones fit one device.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import UsageError

KINDS = ("int8", "int4")
_GROUP = 32  # columns that share a scale in int4
_SHRINK = [1.0 - 0.05 * i for i in range(9)]  # of the range: 1.0 ... 0.6


def check_available(kind: str) -> None:
    """Raises UsageError for an unknown kind, or without the library."""
    if kind not in KINDS:
        raise UsageError(f"weights can be {' or '.join(KINDS)}, not {kind!r}")
    if importlib.util.find_spec("compressed_tensors") is None:
        raise UsageError("quantised weights need: pip install 'posttrain[export]'")


def quantize(model: Any, kind: str) -> None:
    """Replace the weights of all linear layers but the head, in place; then ``finish`` the folder.

    Raises UsageError when a layer's width can't be divided into groups.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config

    apply_quantization_config(model, _config(kind, model), run_compressed=False)
    for name, layer in model.named_modules():
        if getattr(layer, "quantization_scheme", None) is not None:
            _check_width(name, layer, kind)
            scale = best_scale(layer.weight.detach().float(), 8 if kind == "int8" else 4, kind)
            layer.weight_scale.data = scale.to(layer.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.posttrain_compressor = compressor


def finish(model: Any, folder: Path) -> None:
    """Write how the weights are to be read into the saved folder's config.json."""
    model.posttrain_compressor.update_config(str(folder))


def best_scale(weight: Tensor, bits: int, kind: str) -> Tensor:
    """Of each group the scale with the least squared error; [rows, groups]."""
    groups = weight.unflatten(-1, (-1, _GROUP if kind == "int4" else weight.shape[-1]))
    top = 2 ** (bits - 1) - 1
    widest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / top
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in _SHRINK:
        scale = widest * share
        error = (groups - scale * (groups / scale).round().clamp(-top - 1, top)).square()
        error = error.sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best[..., 0]


def _config(kind: str, model: Any) -> Any:
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    if kind == "int8":
        weights = QuantizationArgs(num_bits=8, strategy="channel")
        inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    else:
        weights = QuantizationArgs(num_bits=4, strategy="group", group_size=_GROUP)
        inputs = None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    head: Any = model.get_output_embeddings()
    ignored = [name for name, layer in model.named_modules() if layer is head]
    layout = "int-quantized" if kind == "int8" else "pack-quantized"
    return QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignored, format=layout)


def _check_width(name: str, layer: nn.Linear, kind: str) -> None:
    if kind == "int4" and layer.weight.shape[-1] % _GROUP:
        raise UsageError(
            f"int4: {name} is {layer.weight.shape[-1]} columns wide, which is no multiple of "
            f"{_GROUP}; use int8"
        )
