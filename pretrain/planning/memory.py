"""Decides how many bytes a rank needs, from the model's shape and the way it is divided.

Weights, gradients, optimiser: mixed precision with Adam is 2 + 2 + 12 bytes per parameter, of which
ZeRO 1 divides the 12 over the data-parallel ranks, ZeRO 2 the gradients too, ZeRO 3 all
(Rajbhandari et al. 2020, section 3 and figure 1). Tensor and pipeline ranks divide all of them.

Activations of one layer: the sum of what its backward pass reads, as Korthikanti et al. (2022,
section 4, table 2) add it up, here with the widths of the shape. For a GPT layer with dropout that
is their s b h (34 + 5 a s / h); for a gated MLP, grouped keys and no dropout it is less. Of it the
inputs of norms and matrices (10 of the 34) are divided by tensor ranks only with sequence
parallelism. ``selective`` recomputes the attention's scores, as every fused attention does;
``full`` keeps a layer's input alone. The first pipeline stage holds as many micro-batches as there
are stages (one forward, one backward), so its layers' activations are those of the whole model.

Left out: buffers of communication, fragmentation, the framework itself. Allow 10 to 20 % for them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain.errors import UsageError

Recompute = Literal["none", "selective", "full"]
HALF, FULL = 2, 4  # bytes
ADAM = 12  # bytes per parameter: float32 weights and two moments


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a dense decoder. ``gated`` is a SwiGLU MLP with three matrices, otherwise two."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool = False
    gated: bool = True
    dropout: bool = False

    @property
    def layer_parameters(self) -> int:
        """Of one layer: attention, MLP and two gains."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.mlp + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All of them; biases and the norms of queries and keys are left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def flops_per_token(self, row_tokens: int) -> float:
        """6 N + 12 layers heads head_dim row_tokens: with the attention's own products, unmasked
        (Chowdhery et al. 2022, appendix B). What MFU is measured against."""
        return 6.0 * self.parameters + 12.0 * self.layers * self.heads * self.head_dim * row_tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is divided over ranks. ``context`` ranks share a row's tokens."""

    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    sequence_parallel: bool = False  # norms divided over the tensor ranks
    zero: int = 0

    def __post_init__(self) -> None:
        if min(self.ranks, self.tensor, self.pipeline, self.context) < 1:
            raise UsageError("ranks, tensor, pipeline and context must be at least 1")
        if self.zero not in (0, 1, 2, 3):
            raise UsageError(f"zero must be 0, 1, 2 or 3, not {self.zero}")
        if self.ranks % self._model:
            raise UsageError(
                f"{self.ranks} ranks cannot be divided into {self.tensor} tensor x {self.pipeline} "
                f"pipeline x {self.context} context: use a multiple of {self._model}"
            )

    @property
    def _model(self) -> int:
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.ranks // self._model

    @property
    def shards(self) -> int:
        """Ranks that ZeRO divides over: those with the same weights, context ranks included."""
        return self.data * self.context


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the rank that needs most."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.activations + self.logits


def rank_memory(
    shape: Shape,
    layout: Layout,
    *,
    row_tokens: int,
    rows: int = 1,
    recompute: Recompute = "selective",
) -> Memory:
    """Bytes per rank for micro-batches of ``rows`` rows.

    Raises UsageError for what cannot be divided.
    """
    _check(shape, layout, row_tokens, rows, recompute)
    states = _rank_parameters(shape, layout)
    over = layout.shards
    local = rows * row_tokens / layout.context  # tokens of a micro-batch on this rank
    layer = layer_activations(shape, layout, row_tokens=row_tokens, rows=rows, recompute=recompute)
    divided = layout.tensor if layout.sequence_parallel else 1
    masks = shape.hidden * local / divided if shape.dropout else 0.0  # of the embedding
    stage = _stage_layers(shape, layout) * layer
    output = local * (2 * HALF * shape.hidden / divided + FULL * shape.vocabulary / layout.tensor)
    # The first stage holds a micro-batch for each stage, the last holds one and makes the logits.
    first, last = layout.pipeline * (stage + masks), stage
    of_last = layout.pipeline == 1 or last + output > first
    return Memory(
        weights=HALF * states / (over if layout.zero >= 3 else 1),
        gradients=HALF * states / (over if layout.zero >= 2 else 1),
        optimiser=ADAM * states / (over if layout.zero >= 1 else 1),
        activations=last + (masks if layout.pipeline == 1 else 0.0) if of_last else first,
        logits=output if of_last else 0.0,
    )


def layer_activations(
    shape: Shape,
    layout: Layout,
    *,
    row_tokens: int,
    rows: int = 1,
    recompute: Recompute = "selective",
) -> float:
    """Bytes that one layer keeps of one micro-batch."""
    tokens = rows * row_tokens / layout.context
    tensor = layout.tensor
    along = tensor if layout.sequence_parallel else 1
    if recompute == "full":
        return HALF * shape.hidden * tokens / along
    inputs = 4 * HALF * shape.hidden  # two norms, the attention, the MLP
    masks = 2 * shape.hidden if shape.dropout else 0  # a byte each
    heads = HALF * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)  # Q, output; K, V
    mlp = HALF * shape.mlp * (4 if shape.gated else 2)
    scores = 0.0
    if recompute == "none":  # the softmax's output; with dropout its mask and result as well
        scores = shape.heads * row_tokens * (5 if shape.dropout else 2)
    return tokens * ((inputs + masks) / along + (heads + mlp + scores) / tensor)


def _rank_parameters(shape: Shape, layout: Layout) -> float:
    """Of the stage with most: its layers and, first and last, an embedding matrix."""
    layers = _stage_layers(shape, layout) * shape.layer_parameters
    embedding = shape.vocabulary * shape.hidden
    both = layout.pipeline == 1 and not shape.tied
    return (layers + embedding * (2 if both else 1) + shape.hidden) / layout.tensor


def _stage_layers(shape: Shape, layout: Layout) -> int:
    return -(-shape.layers // layout.pipeline)  # of the stage with most


def _check(shape: Shape, layout: Layout, row_tokens: int, rows: int, recompute: str) -> None:
    if row_tokens < 1 or rows < 1:
        raise UsageError("row tokens and rows must be at least 1")
    if recompute not in ("none", "selective", "full"):
        raise UsageError(f"recompute must be none, selective or full, not {recompute!r}")
    if layout.sequence_parallel and layout.tensor == 1:
        raise UsageError("sequence parallelism divides over tensor ranks: tensor must be above 1")
    if layout.pipeline > shape.layers:
        raise UsageError(f"{shape.layers} layers cannot fill {layout.pipeline} pipeline stages")
    for what, whole, part in (
        ("heads", shape.heads, layout.tensor),
        ("row tokens", row_tokens, layout.context),
    ):
        if whole % part:
            raise UsageError(f"{whole} {what} cannot be divided over {part} ranks")


def read_shape(path: str | Path) -> Shape:
    """The shape in a Hugging Face ``config.json``, or in the folder that holds one."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read a model's shape from {file}: {error}") from error
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            mlp=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UsageError(f"{file} has no {error}: a dense decoder's config is needed") from error
