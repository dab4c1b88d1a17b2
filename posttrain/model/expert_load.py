"""Mixtures of experts: the loss that keeps their load even, and what is said of the load.

    aux = mean over layers of  E sum_e f_e P_e

f_e is the share of tokens that expert e of E is among the k chosen ones for (they sum to k), P_e
the mean probability that the router gives it (Switch Transformer, Fedus et al., arXiv:2101.03961,
equations 4 to 6). k where the load is even. The model's ``router_aux_loss_coef`` times this is
added to the step's loss.

Both are means over all tokens of the *step*: prompts once for each sample, no filling, all rows and
ranks. A load that is even over the step is what counts, and experts may differ by document (Qiu et
al., arXiv:2501.11873); and so the value does not depend on how the step is cut. f has no gradient,
therefore rows can go one after another once f is known. It is known after the forward pass where a
rank has one row; where it has several, a pass without gradients comes first, a third more work.

transformers adds up f and P over layers before they are multiplied: two layers that collapse on
different experts then look even. Here each layer counts for itself; with one layer it is the same.

Left out: the router z-loss, biases without a loss (arXiv:2408.15664), capacity limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """What of a model's config decides this."""

    count: int  # E
    chosen: int  # k
    coefficient: float

    @classmethod
    def of(cls, model: Any) -> Experts | None:
        """None where the model is dense, or its routers are not shown by transformers."""
        config = model.config.get_text_config()
        recorded = getattr(model.base_model, "_can_record_outputs", None) or {}
        chosen = getattr(config, "num_experts_per_tok", None)
        count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        if "router_logits" not in recorded or not chosen or not count:
            return None
        coefficient = getattr(config, "router_aux_loss_coef", 0.0) or 0.0
        return cls(int(count), int(chosen), float(coefficient))


def routing_of(logits: Sequence[Tensor], chosen: int, uses: Tensor) -> Tensor:
    """Of each layer's router logits [T, E]: [2, layers, E], sums of probabilities, and of choices.

    ``uses`` [T] says how often each packed token counts: once per sequence that has it.
    """
    sums = []
    for layer in logits:
        probabilities = torch.softmax(layer.float(), -1)
        choices = torch.zeros_like(probabilities)
        choices.scatter_(1, probabilities.topk(chosen, -1).indices, 1.0)
        sums.append(torch.stack([uses @ probabilities, uses @ choices.detach()]))
    return torch.stack(sums, 1)


class StepLoad:
    """The load of one optimiser step. ``settle`` is a collective."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        self._sums: Tensor | None = None  # [2, layers, E] over the rows so far
        self._share: Tensor | None = None  # f [layers, E] of the whole step
        self._tokens = 1.0

    def note(self, routing: Tensor) -> None:
        """Count a row in."""
        new = routing.detach().double()
        self._sums = new if self._sums is None else self._sums + new

    def settle(self) -> None:
        """All rows of this rank were counted: add up the ranks'."""
        if self._sums is None:
            raise ValueError("no row was counted")
        dist.all_reduce(self._sums)
        self._tokens = max(float(self._sums[1, 0].sum()) / self._experts.chosen, 1.0)
        self._share = self._sums[1] / self._tokens

    def loss(self, routing: Tensor) -> Tensor:
        """A row's part of coefficient x aux: all rows' and ranks' parts add up to it.

        Where nothing was settled before, the row is taken for this rank's only one.
        """
        if not self._experts.coefficient:
            self.note(routing)
            return routing.new_zeros(())
        if self._share is None:
            self.note(routing)
            self.settle()
        assert self._share is not None
        mean = routing[0] / self._tokens  # this row's part of P
        aux = self._experts.count * (self._share.float() * mean).sum() / len(mean)
        return self._experts.coefficient * aux

    def metrics(self) -> dict[str, Any]:
        """For metrics.jsonl; by layer [layers] where it says so.

        ``experts_used`` is exp(entropy of the load): between k, where all tokens go to the same
        experts, and E. ``expert_max_share`` is the busiest expert's share of the tokens.
        ``expert_shares`` [E] are those of the layer that uses the fewest.
        """
        if self._share is None:
            self.settle()
        assert self._share is not None and self._sums is not None
        share = self._share.cpu()
        load = share / share.sum(1, keepdim=True)
        used = torch.exp(-(load * load.clamp(min=1e-30).log()).sum(1))
        worst = int(used.argmin())
        aux = self._experts.count * (self._share * self._sums[0] / self._tokens).sum(1).mean()
        return {
            "router_aux_loss": float(aux),
            "experts_used_min": round(float(used[worst]), 3),
            "expert_share_max": round(float(share.max()), 4),
            "experts_used": [round(float(x), 3) for x in used],
            "expert_max_share": [round(float(x), 4) for x in share.amax(1)],
            "expert_shares": [round(float(x), 4) for x in share[worst]],
            "expert_shares_layer": worst,
            "expert_collapse": is_collapsed(float(used[worst]), self._experts),
        }


def is_collapsed(used: float, experts: Experts) -> bool:
    """Whether a layer's experts in use are within a tenth of the way from k to E."""
    return used < experts.chosen + (experts.count - experts.chosen) / 10


def collapse_text(record: Mapping[str, Any]) -> str:
    """A warning for a step's record; empty where there is nothing to warn of."""
    if not record.get("expert_collapse"):
        return ""
    worst = record["expert_shares_layer"]
    shares = record["expert_shares"]
    used = record["experts_used_min"]
    busiest = max(range(len(shares)), key=shares.__getitem__)
    return (
        f"step {record['step']}: the router of expert layer {worst} collapses: its load is that of "
        f"{used:.1f} of {len(shares)} experts, expert {busiest} has {shares[busiest]:.0%} of the "
        "tokens. See docs/learner.md, mixtures of experts"
    )
