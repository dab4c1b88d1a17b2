"""Training a process reward model: was each step of an answer right? (arXiv:2305.20050)

    prompt + steps + labels      texts, and true or false for each; TRL's name for the steps,
                                 ``completions``, is read too

A head on every token, of two labels [bad, good], trained where a step ends (Math-Shepherd,
arXiv:2312.08935): the tokens, and the place in them, are those that ``rewards.model.load_process``
reads, by its own code. The training itself is transformers' Trainer; TRL has none for it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from posttrain.config import Positive
from posttrain.errors import UsageError
from posttrain.trainers.adapters import adapter_config, quantisation
from posttrain.trainers.conversations import name_of, read_rows
from posttrain.trainers.pair_training import PairJob, PairSettings
from posttrain.trainers.preference_data import Row, some, split
from posttrain.trainers.reward_data import settle_pad_token
from posttrain.trainers.reward_judging import calibration
from posttrain.trainers.reward_page import page
from posttrain.trainers.settings import with_changes
from posttrain.trainers.training import Place, points
from rewards.model.failures import Unjudged
from rewards.model.process import mark_steps
from rewards.model.reading import Reader, ReadingSettings

RECORD, PAGE = "process_reward_model.json", "process_reward_model.html"
IGNORED = -100  # no loss here


class ProcessRewardModelSettings(PairSettings):
    """How steps are told apart, and the pace. ``too_long = "truncate"`` is not for steps."""

    learning_rate: Positive = Field(default=1e-4, description="peak rate; falls along a cosine")
    separator: str = Field(
        default="\n\n", min_length=1, description="between two steps of a completion"
    )
    mark: str = Field(default="", description="written behind each step; empty: the separator")


class _Steps(NamedTuple):
    row: int
    prompt: tuple[Mapping[str, Any], ...]
    steps: tuple[str, ...]
    labels: tuple[bool, ...]


class _Data(NamedTuple):
    train: list[Row]  # {"input_ids", "labels"}
    held_out: list[Row]
    counts: Counter[str]


def train_process_reward_model(
    model: str | Path,
    data: Any,
    out_dir: str | Path,
    settings: ProcessRewardModelSettings | None = None,
    *,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Train a process reward model; ``rewards.model.load_process`` takes the result.

    Pass it the same ``separator`` and ``mark``. ``changes`` are fields of the settings by name.
    Raises UsageError for bad input, before the model is loaded and with nothing written. After
    Ctrl-C it raises KeyboardInterrupt; ``resume=True`` goes on from there.
    """
    settings = with_changes(ProcessRewardModelSettings, settings, changes)
    if settings.too_long == "truncate":
        raise UsageError('too_long = "truncate": a process reward model needs every step')
    job = PairJob(model, out_dir, settings, seed)
    rows = _rows(job.tokenizer, data, settings, job.window, seed)
    with job.place(rows) as place:
        trainer = _trainer(job, rows.train, place)
        result = job.run(trainer, place, {"loss": "loss"})
        held_out = _judge(trainer.model, rows.held_out)
        record = job.record(rows, result, losses=points(trainer, "loss"), held_out=held_out)
        files = {PAGE: page(place.out.name, record)}
        return job.finish(trainer, place, record, RECORD, **files)


# data


def _rows(
    tokenizer: Any, data: Any, settings: ProcessRewardModelSettings, limit: int, seed: int
) -> _Data:
    """Everything that can be refused is refused here; settles the tokenizer's pad token."""
    name, counts = name_of(data), Counter[str]()
    reader = Reader(tokenizer, limit, ReadingSettings(max_tokens=limit), "the model's tokenizer")
    settle_pad_token(tokenizer, reader.probe_ids[-1])
    found: list[tuple[_Steps, Row]] = []
    for number, raw in enumerate(read_rows(data), 1):
        kind = "bad row"
        try:
            steps = _parse(raw, number, settings.separator)
            kind = "too long"
            found.append((steps, _tokens(reader, steps, settings)))
        except (UsageError, Unjudged) as problem:
            allowed = settings.bad_rows if kind == "bad row" else settings.too_long
            if allowed == "error":
                raise UsageError(f"{name}, row {number}: {problem}") from problem
            counts[kind] += 1
    train, held_out = split(found, settings.held_out_share, lambda one: one[0].prompt, seed)
    some(train, name, counts)
    return _Data([row for _, row in train], [row for _, row in held_out], counts)


def _parse(row: Mapping[str, Any], number: int, separator: str) -> _Steps:
    steps = row.get("steps") if row.get("steps") is not None else row.get("completions")
    prompt, labels = row.get("prompt"), row.get("labels")
    if not prompt or not steps or labels is None:
        raise UsageError(f"needs 'prompt', 'steps' and 'labels' (found: {sorted(row)})")
    if len(steps) != len(labels):
        raise UsageError(f"{len(steps)} steps and {len(labels)} labels")
    for place, step in enumerate(steps, 1):
        if not isinstance(step, str) or not step.strip():
            raise UsageError(f"step {place} is empty")
        if separator in step:
            raise UsageError(f"step {place} holds the separator {separator!r}")
    if not all(isinstance(label, bool | int) and label in (0, 1) for label in labels):
        raise UsageError(f"labels are true or false, not {labels!r:.60}")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return _Steps(number, tuple(asked), tuple(steps), tuple(map(bool, labels)))


def _tokens(reader: Reader, one: _Steps, settings: ProcessRewardModelSettings) -> Row:
    """Raises Unjudged for a row over the window."""
    mark = settings.mark or settings.separator
    messages = [*one.prompt, {"role": "assistant", "content": ""}]
    marked = mark_steps(reader, messages, one.steps, mark, mark != settings.separator)
    labels = [IGNORED] * len(marked.ids)
    for end, good in zip(marked.ends, one.labels, strict=True):
        labels[end] = int(good)
    return {"input_ids": marked.ids, "labels": labels}


# training


def _trainer(job: PairJob[ProcessRewardModelSettings], rows: list[Row], place: Place) -> Any:
    import transformers
    from datasets import Dataset
    from peft import get_peft_model

    transformers.set_seed(job.seed)  # the head is new
    loaded: Any = transformers.AutoModelForTokenClassification.from_pretrained(
        job.model,
        num_labels=2,
        id2label={0: "bad", 1: "good"},
        dtype="float32",
        quantization_config=quantisation(job.settings.lora, "score"),
    )
    loaded.config.get_text_config().pad_token_id = job.tokenizer.pad_token_id
    if job.settings.lora is not None:
        loaded = get_peft_model(loaded, adapter_config(job.settings.lora, "TOKEN_CLS"))
    return transformers.Trainer(
        model=loaded,
        args=job.arguments(transformers.TrainingArguments, place),
        data_collator=transformers.DataCollatorForTokenClassification(job.tokenizer),
        train_dataset=Dataset.from_list(rows),
        processing_class=job.tokenizer,
    )


def _judge(model: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Of the held-out steps: accuracy, calibration, and whether the first wrong one is found."""
    import torch

    if not rows:
        return {}
    model.eval()
    said, right, found = [], [], []
    for row in rows:
        with torch.inference_mode():
            ids = torch.tensor([row["input_ids"]], device=model.device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        ends = [t for t, label in enumerate(row["labels"]) if label != IGNORED]
        good = logits.softmax(-1)[ends, 1].cpu().numpy()
        labels = np.array([row["labels"][t] for t in ends], bool)
        said += list(np.maximum(good, 1 - good))
        right += list((good > 0.5) == labels)
        found.append(_first_wrong(good > 0.5) == _first_wrong(labels))
    sure, hits = np.array(said, np.float64), np.array(right, bool)
    steps = [label for row in rows for label in row["labels"] if label != IGNORED]
    return {
        "answers": len(rows),
        "steps": len(steps),
        "share_of_good_steps": float(np.mean(steps)),
        "accuracy": float(hits.mean()),
        "first_wrong_step_found": float(np.mean(found)),
        "calibration": calibration(sure, hits),
    }


def _first_wrong(good: Any) -> int:
    """Its index, or the number of steps where all are good."""
    return next((i for i, right in enumerate(good) if not right), len(good))
