"""TRL's RewardTrainer, told one more thing: pairs of which neither answer is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from posttrain.trainers.reward_losses import tie_loss, win_loss


@dataclass
class Collator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's, with the column "tie" where there is one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if "tie" in examples[0]:
            batch["tie"] = torch.tensor([example["tie"] for example in examples])
        return batch


class PairRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """Bradley-Terry is TRL's loss; with ties it is Rao-Kupper's, whose eta is in the margins."""

    def __init__(self, *, eta: float, **given: Any) -> None:
        self.eta = eta
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tie = inputs.pop("tie", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if tie is not None:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            gap = chosen - rejected
            won = win_loss(gap, inputs["margin"])
            loss = torch.where(tie, tie_loss(gap, self.eta), won).mean()
            centre = self.args.center_rewards_coefficient or 0.0
            loss = loss + centre * ((chosen + rejected) ** 2).mean()
        return (loss, outputs) if return_outputs else loss
