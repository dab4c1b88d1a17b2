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

A mixture of experts holds all of them and computes with those of a token: copies of the token for
each, what their MLPs keep, their outputs, and the router's probabilities. Its experts and routers
are divided by pipeline stages and ZeRO alone: no rank has experts of its own, and tensor ranks
leave them whole.

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
# Kind of mixture, as a config names it -> where the width of an expert stands.
_EXPERT_WIDTH = {"qwen3_moe": "moe_intermediate_size", "mixtral": "intermediate_size"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a decoder. ``gated`` is a SwiGLU MLP with three matrices, otherwise two; ``mlp`` is the
    width of the MLP or, where there are experts, of one of them."""

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
    head_norms: bool = False  # gains for queries and keys, as in Qwen3
    experts: int = 0  # of a layer; 0: dense
    experts_per_token: int = 0

    @property
    def _mlp_parameters(self) -> int:
        return (3 if self.gated else 2) * self.hidden * self.mlp

    @property
    def _shared_parameters(self) -> int:
        """Of one layer, without MLP or experts: attention and gains."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)

    @property
    def expert_parameters(self) -> int:
        """Of one layer: its experts and their router; 0 of a dense one."""
        return self.experts * (self._mlp_parameters + self.hidden)

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return self._shared_parameters + (self.expert_parameters or self._mlp_parameters)

    @property
    def active_layer_parameters(self) -> int:
        """Of one layer, those that a token meets."""
        router = self.experts * self.hidden
        return (
            self._shared_parameters + router + (self.experts_per_token or 1) * self._mlp_parameters
        )

    @property
    def parameters(self) -> int:
        """All of them; biases are left out."""
        return self.layers * self.layer_parameters + self._outside

    @property
    def active_parameters(self) -> int:
        """Those that a token meets: all of a dense model."""
        return self.layers * self.active_layer_parameters + self._outside

    @property
    def _outside(self) -> int:
        """Of no layer: embeddings and the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    def flops_per_token(self, row_tokens: int) -> float:
        """6 N + 12 layers heads head_dim row_tokens: with the attention's own products, unmasked
        (Chowdhery et al. 2022, appendix B), N those that a token meets. What MFU is measured
        against."""
        attention = 12.0 * self.layers * self.heads * self.head_dim * row_tokens
        return 6.0 * self.active_parameters + attention


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
    mlp, experts = HALF * shape.mlp * (4 if shape.gated else 2), 0
    if shape.experts:
        each = mlp + 2 * HALF * shape.hidden  # with the token's copy and the output
        mlp, experts = 0, shape.experts_per_token * each + FULL * shape.experts
    scores = 0.0
    if recompute == "none":  # the softmax's output; with dropout its mask and result as well
        scores = shape.heads * row_tokens * (5 if shape.dropout else 2)
    return tokens * ((inputs + masks) / along + (heads + mlp + scores) / tensor + experts)


def _rank_parameters(shape: Shape, layout: Layout) -> float:
    """Of the stage with most: its layers and, first and last, an embedding matrix."""
    layers = _stage_layers(shape, layout)
    embedding = shape.vocabulary * shape.hidden
    both = layout.pipeline == 1 and not shape.tied
    outside = embedding * (2 if both else 1) + shape.hidden
    experts = layers * shape.expert_parameters
    return experts + (layers * shape.layer_parameters - experts + outside) / layout.tensor


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
    """The shape in a Hugging Face ``config.json``, or in the folder that holds one.

    Raises UsageError for a file that is none, and for experts that are not counted here.
    """
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
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            head_norms=str(config.get("model_type")).startswith("qwen3"),
            **_mlp_sizes(config, file),
        )
    except KeyError as error:
        raise UsageError(f"{file} has no {error}: a decoder's config is needed") from error


def _mlp_sizes(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Of the MLP, or of experts; a mixture that is counted wrongly is refused."""
    kind = config.get("model_type")
    signs = [name for name in config if "expert" in name and config[name]]
    if kind not in _EXPERT_WIDTH:
        if signs:
            raise UsageError(
                f"{file} is a mixture of experts of the kind {kind} ({signs[0]}): only "
                f"{' and '.join(_EXPERT_WIDTH)} are planned"
            )
        return {"mlp": config["intermediate_size"]}
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UsageError(f"{file} has layers without experts among others: that is not planned")
    experts = config.get("num_experts") or config["num_local_experts"]
    width = config[_EXPERT_WIDTH[kind]]
    return {"mlp": width, "experts": experts, "experts_per_token": config["num_experts_per_tok"]}
