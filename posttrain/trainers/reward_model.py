"""Training a reward model on preferences: a score head on a chat model, by TRL's RewardTrainer.

Left out of InstructGPT's recipe: all pairs of a ranking in one batch, which saves passes over the
longer prompts; here they are shuffled like others, so an epoch sees an answer of a ranking of K in
up to K - 1 batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.trainers.adapters import adapter_config, quantisation
from posttrain.trainers.pair_training import PairJob
from posttrain.trainers.preference_data import Row
from posttrain.trainers.reward_data import RewardModelSettings, RewardRows, reward_rows
from posttrain.trainers.reward_judging import ScoredPair, judge
from posttrain.trainers.reward_page import page
from posttrain.trainers.settings import with_changes
from posttrain.trainers.training import Place, points

AT_ONCE = 32  # rows scored in one pass
RECORD, PAGE, SCORES = "reward_model.json", "reward_model.html", "held_out.jsonl"
_SHOWN = {"loss": "loss", "accuracy": "accuracy", "margin": "margin"}


def train_reward_model(
    model: str | Path,
    data: Any,
    out_dir: str | Path,
    settings: RewardModelSettings | None = None,
    *,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Train a reward model from a chat checkpoint; ``rewards.model.load`` takes the result.

    ``data``: pairs, ties, margins, rankings, see ``posttrain.trainers.pairs``. ``changes`` are
    fields of RewardModelSettings by name. The result holds ``reward_model.json``, the same as a
    page (``reward_model.html``), and the scores of the held-out pairs (``held_out.jsonl``).

    Raises UsageError for bad input, before the model is loaded and with nothing written. After
    Ctrl-C it raises KeyboardInterrupt; ``resume=True`` goes on from there.
    """
    settings = with_changes(RewardModelSettings, settings, changes)
    job = PairJob(model, out_dir, settings, seed)
    rows = reward_rows(job.tokenizer, data, settings, job.window, seed)
    with job.place(rows) as place:
        trainer = _trainer(job, rows, place)
        result = job.run(trainer, place, _SHOWN)
        scored = score_pairs(trainer.model, rows.held_out, job.tokenizer.pad_token_id)
        record = job.record(
            rows,
            result,
            ties=sum(row["tie"] for row in rows.train),
            losses=points(trainer, *_SHOWN),
            held_out=judge(scored, rows.eta),
        )
        lines = (
            json.dumps({name: getattr(pair, name) for name in ScoredPair.__slots__})
            for pair in scored
        )
        files = {PAGE: page(place.out.name, record), SCORES: "".join(f"{line}\n" for line in lines)}
        return job.finish(trainer, place, record, RECORD, **files)


def _trainer(job: PairJob[RewardModelSettings], rows: RewardRows, place: Place) -> Any:
    from datasets import Dataset
    from trl import RewardConfig

    from posttrain.trainers.reward_trainers import Collator, PairRewardTrainer

    columns = ["chosen_ids", "rejected_ids"]
    columns += ["margin"] if any(row["margin"] for row in rows.train) else []
    columns += ["tie"] if rows.eta > 0 else []
    return PairRewardTrainer(
        eta=rows.eta,
        model=job.model,
        args=job.arguments(
            RewardConfig,
            place,
            max_length=None,  # rows are cut already
            center_rewards_coefficient=job.settings.centre or None,
            model_init_kwargs={"dtype": "float32"},
        ),
        data_collator=Collator(pad_token_id=job.tokenizer.pad_token_id),
        train_dataset=Dataset.from_list([{c: row[c] for c in columns} for row in rows.train]),
        processing_class=job.tokenizer,
        peft_config=adapter_config(job.settings.lora, "SEQ_CLS"),
        quantization_config=quantisation(job.settings.lora, "score"),
    )


def score_pairs(model: Any, rows: Sequence[Row], pad: int) -> list[ScoredPair]:
    """Raw scores of both answers of each row, in float32."""
    chosen = raw_scores(model, [row["chosen_ids"] for row in rows], pad)
    rejected = raw_scores(model, [row["rejected_ids"] for row in rows], pad)
    return [
        ScoredPair(row["row"], c, r, len(row["chosen_ids"]), len(row["rejected_ids"]), row["tie"])
        for row, c, r in zip(rows, chosen, rejected, strict=True)
    ]


def raw_scores(model: Any, rows: Sequence[Sequence[int]], pad: int) -> list[float]:
    """The head's output for each row of token ids, rows of similar lengths together."""
    import torch

    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [0.0] * len(rows)
    for start in range(0, len(order), AT_ONCE):
        members = order[start : start + AT_ONCE]
        longest = max(len(rows[i]) for i in members)
        ids = torch.full((len(members), longest), pad)
        mask = torch.zeros_like(ids)
        for at, i in enumerate(members):
            ids[at, : len(rows[i])] = torch.tensor(rows[i])
            mask[at, : len(rows[i])] = 1
        with torch.inference_mode():
            out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        for i, value in zip(members, out.logits[:, 0].float().tolist(), strict=True):
            found[i] = value
    return found
