"""Decides every size of a model from one dial, the number of its parameters.

The dial walks along one path of shapes on which nothing ever shrinks: depth, width, heads,
key-value heads, feed-forward and vision tower only grow. The shape taken is the one whose total is
nearest in ratio. The rules:

    width       steps of 32 to 512, then of 64. Llama: those that its heads divide, as its config
                demands
    depth       a layer per 64 of width up to 24 layers, then one per 192. Loss changes by
                a few per cent over a wide range (Kaplan et al., arXiv:2001.08361, figure 5).
                Between two widths the path first grows deeper, then wider, for finer steps
    heads       of size 64, one per 64 of width up to 2048; above, of size 128, at least 32 of them
    kv heads    1 below 256 of width, 2 below 1024, 4 below 2048, then 8; the heads are rounded up
                to a multiple
    FFN         3 x width (SwiGLU; Llama has 2.7 to 3.5, Qwen3 3)
    experts     fine-grained (DeepSeekMoE, arXiv:2401.06066): 64 of which 8 see a token, each 3/8 x
                width wide and rounded up to 32, so that a token meets one dense FFN (as OLMoE and
                Qwen3-MoE). Mixtral: 8 of which 2, each 3 x width
    vision      a SigLIP tower half as wide as the language model, and as deep, with FFN 4 x width
    embedding   one matrix for input and output up to width 2560, as Qwen3 and Llama 3.2
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pretrain.errors import UsageError
from pretrain.models.count import count
from pretrain.models.shape import ARCHITECTURES, MOE, Shape, VisionShape

_EXPERTS = {"qwen3_moe": (64, 8), "mixtral": (8, 2)}
_WIDEST = 32_768
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_OPEN = {"dense": (), "moe": ("experts", "experts_per_token", "balance_weight")}
_OPEN["vision"] = ("image_size", "patch_size", "grids")


def shape_for(params: str | float, *, architecture: str = "qwen3", **fixed: Any) -> Shape:
    """The shape whose total parameters are nearest to ``params`` ("10M", "1.5B", or a number).

    ``fixed`` are the sizes that the rules do not choose: ``vocab_size`` (needed), ``max_length``;
    of a mixture ``experts``, ``experts_per_token``, ``balance_weight``; of a model that sees
    ``image_size``, ``patch_size``, ``grids``. Raises UsageError for a size that cannot be read or
    is out of reach (more than a factor of 2 from every shape), or a part that it does not have.
    """
    _check(architecture, fixed)
    wanted = parse_size(params)
    best, total, gap = None, 0, math.inf
    for shape in _path(architecture, fixed):
        new = count(shape).total
        if abs(math.log(new / wanted)) > gap:
            break  # totals only grow along the path
        best, total, gap = shape, new, abs(math.log(new / wanted))
    if best is None or gap > math.log(2.0):
        raise UsageError(
            f"no {architecture} of {wanted:,} parameters: the nearest has {total:,} with a "
            f"vocabulary of {fixed['vocab_size']:,}; choose another size, or a smaller vocabulary"
        )
    return best


def parse_size(text: str | float) -> int:
    """ "10M" is 10,000,000; K, M, B, T and plain numbers are read."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([KMBT]?)\s*", str(text), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is no number of parameters: write 10M, 1.5B or 125000000")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def _check(architecture: str, fixed: dict[str, Any]) -> None:
    if architecture not in ARCHITECTURES:
        raise UsageError(f"no architecture {architecture!r}: there are {', '.join(ARCHITECTURES)}")
    if fixed.get("vocab_size", 0) < 1:
        raise UsageError("vocab_size is needed: the number of the tokenizer's tokens")
    kind = "moe" if architecture in MOE else "vision" if architecture == "llava" else "dense"
    if foreign := sorted(set(fixed) - {"vocab_size", "max_length", *_OPEN[kind]}):
        raise UsageError(f"{', '.join(foreign)}: not to be chosen for {architecture}")


def _path(architecture: str, fixed: dict[str, Any]) -> Iterator[Shape]:
    """Every shape from the smallest: deeper by single layers, then wider."""
    layers = 1
    for width, wider in pairwise(_widths(architecture)):
        yield _shape(architecture, width, layers, fixed)
        while layers < _depth(wider):
            layers += 1
            yield _shape(architecture, width, layers, fixed)


def _widths(architecture: str) -> Iterator[int]:
    for width in (*range(64, 512, 32), *range(512, _WIDEST + 1, 64)):
        if architecture != "llama" or width % _heads(width)[0] == 0:
            yield width


def _depth(width: int) -> int:
    return -(-width // 64) if width <= 1536 else 24 + (width - 1536) // 192


def _shape(architecture: str, width: int, layers: int, fixed: dict[str, Any]) -> Shape:
    heads, kv_heads, head_dim = _heads(width)
    sizes: dict[str, Any] = {
        "architecture": architecture,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": 3 * width,
        "tied": width <= 2560,
    }
    if architecture in MOE:
        sizes |= _experts(architecture, width, fixed)
    if architecture == "llava":
        own = -(-width // 128) * 64
        tile = {key: fixed[key] for key in _OPEN["vision"] if key in fixed}
        sizes["vision"] = VisionShape(own, layers, own // 64, 4 * own, **tile)
    rest = {key: value for key, value in fixed.items() if key not in _OPEN["vision"]}
    return Shape(**sizes, **{key: value for key, value in rest.items() if key not in sizes})


def _heads(width: int) -> tuple[int, int, int]:
    """Heads, key-value heads, head size."""
    head_dim = 64 if width <= 2048 else 128
    kv_heads = next((n for n, end in ((1, 256), (2, 1024), (4, 2048)) if width < end), 8)
    heads = -(-width // head_dim)
    if width > 2048:
        heads = max(32, heads)
    return -(-heads // kv_heads) * kv_heads, kv_heads, head_dim


def _experts(architecture: str, width: int, fixed: dict[str, Any]) -> dict[str, int]:
    experts, chosen = _EXPERTS[architecture]
    experts = fixed.get("experts", experts)
    chosen = fixed.get("experts_per_token", min(chosen, experts))
    share = 1 if architecture == "mixtral" else max(1, chosen)
    one = -(-3 * width // share // 32) * 32
    return {"experts": experts, "experts_per_token": chosen, "expert_ffn": one}
