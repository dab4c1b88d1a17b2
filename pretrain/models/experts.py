"""Decides when a mixture of experts is in balance, and when experts are dead.

    f_e = share of the choices that fall on expert e       (over one batch, per layer; adds to 1)
    loss = mean over layers of  E  sum_e f_e P_e           (1 where the load is even)

P_e is the mean probability that the router gives expert e: Switch Transformer, Fedus et al.,
arXiv:2101.03961, equations 4 to 6, with f divided by the experts per token, so that the value does
not depend on them. f has no gradient; P has.

transformers' own loss adds f and P up over layers before it multiplies: two layers that collapse on
different experts then look even. Here each layer counts for itself, so a model of this package is
trained with this loss and ``output_router_logits=True`` without ``labels``, or with its own loss
taken out. Left out: the router z-loss, and balance by biases (arXiv:2408.15664).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Collapse:
    """An alarm: what has been wrong in one layer for ``steps`` steps on end."""

    layer: int
    expert: int | None  # None: the layer as a whole
    value: float  # the latest share of an expert, or entropy of a layer
    steps: int

    def __str__(self) -> str:
        if self.expert is None:
            return (
                f"layer {self.layer}: the router chooses few experts (entropy {self.value:.2f} of "
                f"1, for {self.steps} steps)"
            )
        return (
            f"layer {self.layer}: expert {self.expert} is not used (share {self.value:.2%}, for "
            f"{self.steps} steps)"
        )


def expert_count(config: Any) -> int:
    """Experts per layer of a transformers config; 0 for a dense model."""
    return int(getattr(config, "num_experts", None) or getattr(config, "num_local_experts", 0) or 0)


def experts_of(config: Any) -> int:
    """Experts that each token goes to; 0 for a dense model."""
    return int(config.num_experts_per_tok) if expert_count(config) else 0


def expert_load(outputs: Any, chosen: int, mask: Tensor | None = None) -> list[list[float]]:
    """Share of the choices on each expert, [layers][experts]; each layer adds up to 1.

    ``outputs`` of a forward pass with ``output_router_logits=True``; ``chosen`` experts per token;
    ``mask`` [B, T] is 1 where a token counts, all of them without it.
    """
    layers = []
    for logits in outputs.router_logits:
        shares, _ = _layer(logits, chosen, mask)
        layers.append(shares.tolist())
    return layers


def load_balancing_loss(outputs: Any, chosen: int, mask: Tensor | None = None) -> Tensor:
    """1 where the load is even, at most the number of experts / ``chosen``. To be multiplied by
    the config's ``router_aux_loss_coef`` and added to the loss. Arguments as for ``expert_load``.
    """
    import torch

    losses = []
    for logits in outputs.router_logits:
        shares, probabilities = _layer(logits, chosen, mask)
        losses.append(logits.shape[-1] * (shares * probabilities).sum())
    return torch.stack(losses).mean()


def _layer(logits: Tensor, chosen: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """f [E] and P [E] of one layer's router logits [B * T, E]."""
    import torch

    probabilities = torch.softmax(logits.float(), -1)
    choices = torch.zeros_like(probabilities)
    choices.scatter_(1, probabilities.topk(chosen, -1).indices, 1.0)
    weight = torch.ones_like(probabilities[:, 0]) if mask is None else mask.reshape(-1).float()
    tokens = weight.sum().clamp(min=1.0)
    return (weight @ choices).detach() / (tokens * chosen), weight @ probabilities / tokens


def collapsed(
    history: Sequence[Sequence[Sequence[float]]],
    *,
    steps: int = 100,
    share_floor: float = 0.05,
    entropy_floor: float = 0.5,
) -> list[Collapse]:
    """The alarms at the end of ``history`` [steps][layers][experts] of ``expert_load``.

    An expert is dead whose share was below ``share_floor`` of an even one in each of the last
    ``steps``; a layer has collapsed where the entropy of its load, divided by the log of the number
    of experts, was below ``entropy_floor`` in each. None before there are so many steps.
    """
    recent = list(history)[-steps:]
    if len(recent) < steps or steps < 1:
        return []
    found = []
    for layer in range(len(recent[-1])):
        loads = [step[layer] for step in recent]
        floor = share_floor / len(loads[-1])
        if all(_entropy(load) < entropy_floor for load in loads):
            found.append(Collapse(layer, None, _entropy(loads[-1]), steps))
        found += [
            Collapse(layer, expert, loads[-1][expert], steps)
            for expert in range(len(loads[-1]))
            if all(load[expert] < floor for load in loads)
        ]
    return found


def _entropy(load: Sequence[float]) -> float:
    """0 where one expert has everything, 1 where all have the same."""
    if len(load) < 2:
        return 1.0
    return -sum(p * math.log(p) for p in load if p > 0) / math.log(len(load))


def load_line(load: Sequence[Sequence[float]]) -> str:
    """One line for the log: the least and the most of an even share in each layer."""
    layers = [f"{min(one) * len(one):.2f}-{max(one) * len(one):.2f}" for one in load]
    return "expert load (1 is even) by layer: " + "  ".join(layers)
