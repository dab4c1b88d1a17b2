"""What a learner rank and an engine will hold in memory, by formula. P parameters, R ranks, b bytes
of ``learner.dtype``; t tokens of a packed row with every prompt once, s slots of its sequences as
attention sees them, N of them with a loss.

=====================  ==================  ====================  =====================
per rank               float32, stage 0    bfloat16, stage 0, 1  ZeRO 1, 2, 3 otherwise
=====================  ==================  ====================  =====================
weights                4 P                 2 P                   b P; stage 3: b P / R
gradients              4 P                 4 P                   4 P / R
float32 weights        -                   4 P / R               4 P / R
Adam's moments         8 P                 8 P / R               8 P / R
passing (at once)      -                   2 P                   b bucket + 4 P / R
=====================  ==================  ====================  =====================

as DeepSpeed's engines do it (``learner.py`` says which is chosen; in bfloat16 stage 0 runs as stage
1, whose accumulated gradient is float32 and whole). ``bucket`` is 5e8 elements, or P where that is
less. A critic costs the same again, a reference model b P, never divided.

With LoRA the table holds for the adapter's parameters, and the P frozen weights add b P (stage 3:
b P / R), or with NF4 0.52 bytes for each weight of a linear layer. With offload on a GPU float32
weights, moments, and 4 bytes for each gradient a rank updates, lie in the host's memory instead.

Activations kept for the backward pass, per layer, counted from what autograd saves of transformers'
llama-like layers and ``packed_attention`` (H hidden, I intermediate of the k experts used, q and k
the widths of queries and keys, w = 4 on a CPU, where attention computes in float32, else b):

    t (2 (4 + b + f b) H + c (q + k) + b q + 4 b I + e) + s w (2 q + 2 k)

A norm keeps its input in float32, its output for the layer behind, and where its own weights are
trained the normalised input too: f = 1, but 0 with LoRA. c = 4 + f b where queries and keys have a
norm of their own, else 0. A mixture copies a token for each of its k experts and keeps their
outputs for the router, e = (1 + f) k b H. An adapter keeps A x, e = b rank for each adapted layer
(of a mixture it keeps less than this: frozen experts do without b I). With gradient checkpointing
b H t per layer and one layer in full. Where S ranks share a row each holds 1 / S of all this.
Logits: chunk V (8 + b) for the log-softmax and its gradient (``policy.py``), and 4 V H for the
head's gradient.

Left out: holes in the heap (docs/benchmarks.md has measured some), the workspace of kernels, tables
of positions, communication of ZeRO-3's prefetching.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from posttrain.config import LearnerSettings, LoraSettings

BUCKET = 500_000_000  # gradients reduced at once, at most: the default of DeepSpeed
RUNTIME_CPU = 480 * 2**20  # Python, torch, transformers and DeepSpeed, imported and idle; measured
RUNTIME_CUDA = 800 * 2**20  # the CUDA context and libraries; assumed
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # of a weight: its level, and two stages of block scales
_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Linear:
    """Layers of one name and size, such as every ``q_proj``."""

    name: str
    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides memory."""

    parameters: int
    head: int  # of them in an output head of its own; 0 where it is tied
    layers: int
    hidden: int
    query: int  # heads x head_dim
    key: int  # key-value heads x head_dim
    intermediate: int  # of all experts that one token uses
    vocabulary: int
    qk_norm: bool
    idle: int = 0  # parameters of the experts that one token does not use
    chosen: int = 0  # experts that one token uses
    linears: tuple[Linear, ...] = ()  # in its layers, without the head

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return self.parameters - self.idle

    def adapter(self, lora: LoraSettings) -> int:
        """Parameters of an adapter."""
        named = self._named(lora)
        return sum(lora.rank * (each.inputs + each.outputs) * each.count for each in named)

    def adapted(self, lora: LoraSettings) -> int:
        """Linear layers that have an adapter."""
        return sum(each.count for each in self._named(lora))

    def _named(self, lora: LoraSettings) -> list[Linear]:
        every = isinstance(lora.targets, str)
        return [each for each in self.linears if every or each.name in lora.targets]

    def kv_bytes(self, dtype: str) -> int:
        """Of one token in the KV cache."""
        return 2 * self.layers * self.key * _BYTES[dtype]


@dataclass(frozen=True, slots=True)
class RowSize:
    """The largest row that a rank walks through."""

    tokens: int  # t
    slots: int  # s
    targets: int  # N
    chunk: int  # tokens whose logits exist at once


@dataclass(frozen=True, slots=True)
class Parts:
    """How many models a rank has, and where."""

    ranks: int
    reference: bool
    critic: bool
    cuda: bool


def model_size(model: str) -> ModelSize:
    """From the checkpoint's config; the weights are counted, not loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    full = AutoConfig.from_pretrained(model)
    config: Any = full.get_text_config()
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(full)
    names = [name for name, _ in built.named_parameters()]
    head, embedding = built.get_output_embeddings().weight, built.get_input_embeddings().weight
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = getattr(config, "num_experts_per_tok", 0) or 0
    inner = getattr(config, "moe_intermediate_size", 0) * experts or config.intermediate_size
    in_experts = sum(p.numel() for name, p in built.named_parameters() if ".experts." in name)
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    return ModelSize(
        parameters=sum(p.numel() for p in built.parameters()),
        head=0 if head is embedding else head.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=heads * width,
        key=(getattr(config, "num_key_value_heads", None) or heads) * width,
        intermediate=inner,
        vocabulary=head.shape[0],
        qk_norm=any("q_norm" in name for name in names),
        idle=in_experts - in_experts * experts // count if experts else 0,
        chosen=experts,
        linears=_linears(built),
    )


def _linears(model: Any) -> tuple[Linear, ...]:
    from torch import nn

    found = Counter(
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
    )
    return tuple(Linear(*kind, count) for kind, count in found.items())


def rank_memory(
    size: ModelSize, row: RowSize, learner: LearnerSettings, parts: Parts
) -> dict[str, int]:
    """Bytes by purpose, at the moment a rank holds most."""
    lora = learner.lora
    found = _states(size.parameters if lora is None else size.adapter(lora), learner, parts)
    if lora is not None:
        found["frozen weights"] = frozen_bytes(size, learner, parts)
    if parts.critic:
        critic = _states(size.parameters - size.head + size.hidden + 1, learner, parts)
        found["critic"] = sum(critic.values()) - critic["passing"]
    if parts.reference and lora is None:  # else it is the policy without its adapter
        found["reference"] = _BYTES[learner.dtype] * size.parameters
    if learner.offload and parts.cuda:
        found |= {"float32 weights": 0, "optimiser": 0}
    return {
        **found,
        "activations": activation_bytes(size, row, learner, cuda=parts.cuda),
        "logits": _logits(size, row, _BYTES[learner.dtype]),
        "runtime": RUNTIME_CUDA if parts.cuda else RUNTIME_CPU,
    }


def host_memory(size: ModelSize, learner: LearnerSettings, parts: Parts) -> int:
    """Bytes that a rank on a GPU keeps in the host's memory: 0 without offload."""
    if not (learner.offload and parts.cuda):
        return 0
    lora = learner.lora
    trained = size.parameters if lora is None else size.adapter(lora)
    if parts.critic:
        trained += size.parameters - size.head + size.hidden + 1
    return (4 + 8 + 4) * -(-trained // parts.ranks)


def frozen_bytes(size: ModelSize, learner: LearnerSettings, parts: Parts) -> int:
    """Of the weights that an adapter leaves alone."""
    b = _BYTES[learner.dtype]
    if learner.lora is None or learner.lora.bits is None:
        held = size.parameters if learner.stage < 3 else -(-size.parameters // parts.ranks)
        return b * held
    quantised = sum(each.inputs * each.outputs * each.count for each in size.linears)
    return int(quantised * NF4_BITS / 8) + b * (size.parameters - quantised)


def _states(parameters: int, learner: LearnerSettings, parts: Parts) -> dict[str, int]:
    """Weights, gradients and optimiser of one trained model."""
    low, stage, p, part = (
        _BYTES[learner.dtype],
        learner.zero_stage,
        parameters,
        -(-parameters // parts.ranks),
    )
    if learner.dtype == "float32" and stage == 0:
        return {
            "weights": 4 * p,
            "gradients": 4 * p,
            "float32 weights": 0,
            "optimiser": 8 * p,
            "passing": 0,
        }
    found = {
        "weights": low * p,
        "gradients": 4 * part,
        "float32 weights": 4 * part,
        "optimiser": 8 * part,
    }
    if learner.dtype == "bfloat16" and stage <= 1:
        return found | {"gradients": 4 * p, "passing": 2 * p}
    if stage == 3:
        found["weights"] = low * part
    return found | {"passing": low * min(BUCKET, p) + 4 * part}


def activation_bytes(size: ModelSize, row: RowSize, learner: LearnerSettings, *, cuda: bool) -> int:
    """What a forward pass over the row keeps for the backward pass, and one layer's gradients."""
    b, lora = _BYTES[learner.dtype], learner.lora
    w, own = (b if cuda else 4), (b if lora is None else 0)  # own: for the gradient of norms
    h, inner, q, k = size.hidden, size.intermediate, size.query, size.key
    turned = (4 + own) * (q + k) if size.qk_norm else 0
    extra = size.chosen * (b + own) * h
    if lora is not None:
        extra += b * size.adapted(lora) * lora.rank // size.layers
    layer = row.tokens * (2 * (4 + b + own) * h + turned + b * q + 4 * b * inner + extra)
    layer += row.slots * w * (2 * q + 2 * k)
    ends = row.tokens * (4 + own) * h + row.targets * b * h
    passing = row.tokens * (2 * b * inner + 4 * h)
    kept = size.layers * layer
    if learner.checkpointing:
        kept = size.layers * b * h * row.tokens + layer
    return (kept + ends + passing) // learner.sequence_parallel


def _logits(size: ModelSize, row: RowSize, b: int) -> int:
    chunk = min(row.chunk, row.targets)
    return chunk * size.vocabulary * (8 + b)  # in tiles; see posttrain.model.token_logprobs
