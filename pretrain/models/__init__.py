"""Architectures from one size dial: dense, mixture of experts, vision and language.

    shape = shape_for("10M", architecture="qwen3_moe", vocab_size=8192)
    print(table(shape))
    model = build(shape, seed=0)

Importing it does not load torch.
"""

from __future__ import annotations

from pretrain.models.build import build
from pretrain.models.count import Count, count, table
from pretrain.models.dial import parse_size, shape_for
from pretrain.models.experts import (
    Collapse,
    collapsed,
    expert_load,
    load_balancing_loss,
    load_line,
)
from pretrain.models.shape import ARCHITECTURES, Shape, VisionShape

__all__ = [
    "ARCHITECTURES",
    "Collapse",
    "Count",
    "Shape",
    "VisionShape",
    "build",
    "collapsed",
    "count",
    "expert_load",
    "load_balancing_loss",
    "load_line",
    "parse_size",
    "shape_for",
    "table",
]
