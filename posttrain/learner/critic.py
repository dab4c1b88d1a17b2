"""The critic: what return a token's state promises. One model and optimiser beside the policy's.

    V_t = w . h(o_<t) + b          h: the start policy's own body, w and b start at zero
    L_t = max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2) / 2

the clipped value loss of PPO's reference implementation (Engstrom et al., arXiv:2005.12729, section
3; used in InstructGPT's recipe), averaged over the tokens the model wrote. The advantage function
says what R is. The rate is ``critic_rate`` times the policy's, with its warm-up.

Left out: a trunk shared with the policy, whose two losses then pull at one set of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.learner.guarded_adam import update
from posttrain.learner.row_tensors import RowTensors
from posttrain.learner.state import Part
from posttrain.learner.step_metrics import Totals
from posttrain.model.packed_attention import Layout
from posttrain.model.policy import Policy, body_pass
from posttrain.model.sequence_parallel import Shard
from posttrain.types import Floats, PackedRow


class ValueModel(nn.Module):
    """The body of a causal LM with one number for a head."""

    def __init__(self, causal_lm: Any, shard: Shard | None = None) -> None:
        super().__init__()
        self.body = causal_lm.base_model
        self.shard = shard
        parameter = next(self.body.parameters())
        self.head = nn.Linear(causal_lm.config.get_text_config().hidden_size, 1)
        self.head.to(device=parameter.device, dtype=parameter.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, token_ids: Tensor, position_ids: Tensor, layout: Layout, before: Tensor
    ) -> Tensor:
        """Values [N] float32 of the states after the packed tokens ``before`` [N]."""
        row = (token_ids, position_ids, layout)
        hidden = body_pass(self.body, row, self.shard).last_hidden_state[0]
        if self.shard is None:
            return self._values(hidden.index_select(0, before))
        mine, at = self.shard.targets(before, len(token_ids))
        return self.shard.whole(self._values(hidden.index_select(0, at)), mine, len(before))

    def _values(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.head(hidden)[:, 0].float()
        return values


def value_loss(values: Tensor, row: RowTensors, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the row's targets, and metric sums. ``clip`` 0: not clipped. All [N]."""
    if row.returns is None or row.values is None:
        raise ValueError("the critic needs the returns and its earlier values")
    target = row.returns
    error = (values - target).square()
    clipped = torch.zeros_like(error)
    if clip > 0:
        bounded = row.values + (values - row.values).clamp(-clip, clip)
        clipped = (bounded - target).square()
    nothing = torch.zeros_like(error)
    loss = torch.where(row.mask, torch.maximum(error, clipped), nothing).sum() / 2
    with torch.no_grad():
        metrics = {
            "value_error": torch.where(row.mask, error, nothing).sum(),
            "value_mean": torch.where(row.mask, values, nothing).sum(),
            "return_mean": torch.where(row.mask, target, nothing).sum(),
            "return_square": torch.where(row.mask, target.square(), nothing).sum(),
            "value_clipped": torch.where(row.mask, (clipped > error).float(), nothing).sum(),
        }
    return loss, metrics


class RankCritic:
    """What one rank does for the critic; every method is a collective."""

    def __init__(
        self,
        policy: Policy,
        initialize: Callable[[nn.Module], Part],
        *,
        clip: float,
        rate_factor: float,
        device: torch.device,
    ) -> None:
        self._model = ValueModel(policy.model, policy.shard)
        self._copies = policy.copies
        self.part = initialize(self._model)
        self._clip = clip
        self._rate_factor = rate_factor
        self._device = device

    def values(self, row: RowTensors) -> Floats:
        """Of the row's real targets, under the current weights."""
        self._model.eval()
        with torch.no_grad():
            found = self.part.engine(*row.inputs[:3], row.inputs[3][0])
        return np.asarray(found[: row.n_targets].cpu().numpy(), np.float32)

    def train(
        self, rows: Sequence[PackedRow], n_tokens: int, world_size: int, rate: float
    ) -> dict[str, float]:
        """One optimiser step at ``rate`` times the factor; metrics over all ranks.

        A step that is not finite changes nothing.
        """
        self._model.train()
        totals = Totals(self._device, self._copies)
        for group in self.part.adam.param_groups:
            group["lr"] = rate * self._rate_factor
        for i, row in enumerate(rows):
            self.part.engine.set_gradient_accumulation_boundary(i == len(rows) - 1)
            tensors = RowTensors(row, self._device, share_prompts=True, multiple=self._copies)
            values = self.part.engine(*tensors.inputs[:3], tensors.inputs[3][0])
            loss, metrics = value_loss(values, tensors, self._clip)
            totals.add({"loss": loss.detach(), **metrics, **tensors.counts()})
            self.part.engine.backward(loss * (world_size / n_tokens), scale_wrt_gas=False)
        found = totals.reduce(n_tokens)
        update(self.part.engine, self.part.adam, found["loss"])
        variance = found["return_square"] - found["return_mean"] ** 2
        return {
            "value_loss": found["loss"],
            "value_mean": found["value_mean"],
            "return_mean": found["return_mean"],
            "value_clip_fraction": found["value_clipped"],
            "explained_variance": 1 - found["value_error"] / variance if variance > 0 else 0.0,
        }
