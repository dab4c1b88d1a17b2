"""The chosen algorithm as functions: what ``config.algorithm`` names, resolved once per process.

The orchestrator takes the advantage from here and the ranks the loss; both resolve the same plain
settings, so nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from posttrain.advantages import ADVANTAGES, StepRewards
from posttrain.config import AlgorithmSettings
from posttrain.corrections import CORRECTIONS
from posttrain.errors import UsageError
from posttrain.losses import AGGREGATIONS, KLS, LOSSES, LossParts, kl_coef
from posttrain.registry import Bound, Registry
from posttrain.types import Floats, Sample

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An advantage, and the parts of a loss."""

    advantage: Bound[Any]
    parts: LossParts

    @classmethod
    def of(cls, settings: AlgorithmSettings) -> Algorithm:
        """Raises UsageError naming the setting that cannot be resolved."""
        parts = LossParts(
            loss=_resolve(LOSSES, settings, "loss"),
            correction=_resolve(CORRECTIONS, settings, "correction"),
            kl=_resolve(KLS, settings, "kl"),
            aggregation=_resolve(AGGREGATIONS, settings, "aggregation"),
            entropy_coef=settings.entropy_coef,
            sft_coef=settings.sft_coef,
        )
        return cls(_resolve(ADVANTAGES, settings, "advantage"), parts)

    def settings(self, given: AlgorithmSettings) -> AlgorithmSettings:
        """``given`` with every choice as a rank can resolve it: all arguments, and a reference in
        place of a name that only this process knows."""
        parts = self.parts
        chosen = {
            "advantage": self.advantage.choice,
            "loss": parts.loss.choice,
            "correction": parts.correction.choice,
            "kl": parts.kl.choice,
        }
        return given.model_copy(update=chosen)

    def check(self, group_size: int) -> None:
        """Try the advantage on a group of zeros. Raises UsageError for what it refuses."""
        if self.kl_in_reward and self.advantage.name == "maxrl":
            raise UsageError(
                "algorithm.advantage = 'maxrl' needs rewards of at least 0, and a KL in the reward "
                "makes them negative: place it in the loss"
            )
        if self.per_token:
            return
        zeros = StepRewards(
            values=((0.0,) * group_size,),
            greedy=(0.0,),
            turn_values=(((0.0,),) * group_size,),
            lengths=((1,) * group_size,),
            log_ratios=((0.0,) * group_size,),
        )
        try:
            self.advantage(zeros)
        except ValueError as error:
            raise UsageError(f"algorithm.advantage: {error}") from error

    @property
    def per_token(self) -> bool:
        return "tokens" in self.advantage.needs

    @property
    def whitens(self) -> bool:
        return bool(self.advantage.arguments.get("whiten"))

    @property
    def greedy(self) -> bool:
        """Whether each group needs a greedy answer beside its samples."""
        return "greedy" in self.advantage.needs

    @property
    def critic(self) -> bool:
        return "values" in self.advantage.needs

    @property
    def critic_warmup(self) -> int:
        """Steps in which only the critic learns."""
        return int(self.advantage.arguments.get("critic_warmup", 0)) if self.critic else 0

    @property
    def servers(self) -> dict[str, str]:
        """Role -> URL, of other models that are asked for log-probs: "teacher", "reference"."""
        found = {"reference": self.parts.kl.arguments.get("reference") if self.kl else None}
        if "teacher" in self.advantage.needs:
            found["teacher"] = self.advantage.arguments.get("teacher")
        return {role: str(url) for role, url in found.items() if url}

    @property
    def log_ratios(self) -> bool:
        """Whether the advantages look at the log-probs of policy and reference."""
        return "log_ratios" in self.advantage.needs

    @property
    def kl_in_reward(self) -> bool:
        return kl_coef(self.parts.kl, "reward") > 0

    @property
    def kl(self) -> bool:
        """Whether there is a KL to a reference policy."""
        return self.parts.kl_coef > 0 or self.kl_in_reward

    @property
    def reference(self) -> bool:
        """Whether the learner keeps the start policy, to be the reference."""
        return (self.kl or self.log_ratios) and "reference" not in self.servers

    @property
    def asks_learner(self) -> tuple[str, ...]:
        """What of each token the advantages need from the learner."""
        reference = (self.kl_in_reward or self.log_ratios) and self.reference
        asked = (("values", self.critic), ("reference", reference), ("policy", self.log_ratios))
        return tuple(name for name, needed in asked if needed)

    @property
    def trains_everything(self) -> bool:
        """Whether samples of advantage 0 have a gradient too."""
        return self.parts.kl_coef > 0 or self.parts.entropy_coef > 0 or self.critic

    def kl_cost(self, sample: Sample, reference: Floats) -> Floats:
        """What each token's KL to the reference takes from its reward, [T]."""
        gap = torch.from_numpy(np.where(sample.loss_mask, reference - sample.logprobs, 0.0))
        coef = kl_coef(self.parts.kl, "reward")
        return np.asarray(coef * self.parts.kl(gap).numpy() * sample.loss_mask, np.float32)


def _resolve(registry: Registry[F], settings: AlgorithmSettings, name: str) -> Bound[F]:
    try:
        return registry.resolve(getattr(settings, name))
    except UsageError as error:
        raise UsageError(f"algorithm.{name}: {error}") from error
