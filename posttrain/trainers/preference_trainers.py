"""TRL's trainers, told three things: rows are tokens already, where reference log-probs are kept,
and the losses that TRL does not have. Everything else is TRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer, KTOTrainer

from posttrain.trainers import reference_cache
from posttrain.trainers.adapters import settle_quantised
from posttrain.trainers.preference_data import fingerprint


class _Prepared:
    """Rows come as tokens; reference log-probs are looked up before they are computed."""

    columns: tuple[str, ...]

    def __init__(self, *, cache_folder: Path, start: str, **given: Any) -> None:
        self.cache_folder, self.start = cache_folder, start
        super().__init__(**given)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        trainer: Any = self
        settle_quantised(trainer, self.start)
        rows = fingerprint(dataset.to_list())
        settings = {"trainer": type(trainer).__name__, "bf16": trainer.args.bf16}
        key = reference_cache.key_of(self._weights(), rows, settings)
        found = reference_cache.load(self.cache_folder, key, self.columns, len(dataset))
        trainer.accelerator.wait_for_everyone()  # all ranks have looked before one writes
        if found is None:
            made = super()._precompute_ref_logps(dataset, name, batch_size)  # type: ignore[misc]
            found = {column: np.asarray(made[column], np.float32) for column in self.columns}
            if trainer.accelerator.is_main_process:
                reference_cache.store(self.cache_folder, key, found)
        for column, values in found.items():
            dataset = dataset.add_column(column, values)
        return dataset

    def _weights(self) -> str:
        """Of the reference: the model, or with an adapter that is gone on with the two of them."""
        model: Any = self.model  # type: ignore[attr-defined]
        kept = "ref" if "ref" in getattr(model, "peft_config", {}) else ""
        return reference_cache.weights_digest(model, adapter=kept)


class PairTrainer(_Prepared, DPOTrainer):  # type: ignore[misc]
    """DPO, IPO, robust and length-normalised DPO, APO: the loss is TRL's."""

    columns = ("ref_chosen_logps", "ref_rejected_logps")


class VerdictTrainer(_Prepared, KTOTrainer):  # type: ignore[misc]
    """KTO."""

    columns = ("ref_logps", "ref_KL_logps")


class ReferenceFreeTrainer(PairTrainer):
    """Losses of the policy's own log-probs: the forward pass is TRL's, the loss a pure function."""

    def __init__(self, *, pair_loss: Callable[..., Tensor], **given: Any) -> None:
        self.pair_loss = pair_loss  # (chosen_B, rejected_B, lengths_2_B) -> [B]
        super().__init__(**given)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            fused_lm_head=True,
            use_cache=False,
        )
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)
        lengths = torch.stack(mask[:, 1:].sum(1).chunk(2))
        loss = self.pair_loss(chosen, rejected, lengths).mean()
        self._note(chosen.detach(), rejected.detach())
        return (loss, outputs) if return_outputs else loss

    def _note(self, chosen_B: Tensor, rejected_B: Tensor) -> None:
        """TRL's metrics by TRL's names; a reward is beta log pi, there being no reference."""
        gather = self.accelerator.gather
        chosen, rejected = gather(chosen_B), gather(rejected_B)
        numbers = {
            "logps/chosen": chosen.mean(),
            "logps/rejected": rejected.mean(),
            "rewards/chosen": self.beta * chosen.mean(),
            "rewards/rejected": self.beta * rejected.mean(),
            "rewards/margins": self.beta * (chosen - rejected).mean(),
            "rewards/accuracies": (chosen > rejected).float().mean(),
        }
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in numbers.items():
            metrics[name].append(value.item())
