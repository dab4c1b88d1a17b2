"""Training on preferences: DPO and its family, by TRL, with the checks, the cache and the record.

The loss is a setting (``preference_losses``). The reference is the start model; its log-probs are
computed once, before the first step, and found again by later runs on the same model and data.

Watched for: the chosen answers becoming less likely. Most of these losses only ask that the
distance to the rejected ones grows, and are content when both fall (arXiv:2402.13228,
arXiv:2404.04626). It is said once, with the numbers, and kept in the record.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from posttrain.config import Positive
from posttrain.trainers.adapters import adapter_config, check_base, quantisation
from posttrain.trainers.chosen_watch import ChosenWatch
from posttrain.trainers.conversations import name_of, read_rows
from posttrain.trainers.pair_training import PairJob, PairSettings
from posttrain.trainers.pairs import read_judged, read_pairs
from posttrain.trainers.preference_data import Cutter, Row, some, split, with_mismatched
from posttrain.trainers.preference_losses import LOSSES, Loss
from posttrain.trainers.reference_cache import cache_folder
from posttrain.trainers.settings import AdapterSettings, with_changes
from posttrain.trainers.training import Place, points, tokens_seen

LossName = Literal[
    "dpo", "dpo_norm", "robust", "ipo", "apo_zero", "apo_down", "kto", "simpo", "orpo", "cpo"
]
RECORD = "preference.json"


class PreferenceAdapterSettings(AdapterSettings):
    """An adapter to train; the result is merged as well."""

    start: str = ""  # folder of an adapter of the same base to go on from; it is the reference


class PreferenceSettings(PairSettings):
    """The loss, and the pace of training. Rates are an order of magnitude below fine-tuning's."""

    loss: LossName = Field(default="dpo", description="docs/preferences.md has them all")
    beta: Positive | None = Field(default=None, description="None: the paper's, for each loss")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        default=0.1, description="robust: share of labels believed to be wrong"
    )
    gamma: Annotated[float, Field(ge=0.0)] = Field(default=1.0, description="simpo: target margin")
    alpha: Annotated[float, Field(ge=0.0)] = Field(
        default=1.0, description="cpo: weight of the chosen answer's likelihood"
    )
    good_weight: Positive = Field(default=1.0, description="kto: weight of good answers")
    bad_weight: Positive = Field(default=1.0, description="kto: weight of bad answers")
    lora: PreferenceAdapterSettings | None = Field(
        default=None, description="rank, alpha, targets, dropout, dora, rslora, bits, start"
    )
    reference_cache: str = Field(
        default="", description="folder for reference log-probs; empty: the user's cache"
    )

    @model_validator(mode="after")
    def _only_its_own(self) -> PreferenceSettings:
        """A setting of another loss would change nothing."""
        others = {name for loss in LOSSES.values() for name in loss.own} - set(self.chosen.own)
        if wrong := sorted(others & self.model_fields_set):
            raise ValueError(f"loss = {self.loss!r} has no {', '.join(wrong)}")
        return self

    @property
    def chosen(self) -> Loss:
        return LOSSES[self.loss]

    @property
    def own(self) -> dict[str, float]:
        """The values of the loss's own settings."""
        beta = self.chosen.beta if self.beta is None else self.beta
        return {"beta": beta} | {name: getattr(self, name) for name in self.chosen.own}


class _Data(NamedTuple):
    train: list[Row]
    held_out: list[Row]
    counts: Counter[str]  # of what was dropped or cut


def train_preferences(
    model: str | Path,
    data: Any,
    out_dir: str | Path,
    settings: PreferenceSettings | None = None,
    *,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Train a checkpoint on pairs (or, kto, judged answers); the result is an ordinary checkpoint.

    ``data``: a file or rows, see ``posttrain.trainers.pairs``. ``changes`` are fields of
    PreferenceSettings by name (``loss="ipo"``). ``preference.json`` in the result holds the
    settings, what became of the rows, the curves and the warnings.

    Raises UsageError for bad input, before the model is loaded and with nothing written. After
    Ctrl-C it raises KeyboardInterrupt; ``resume=True`` goes on from there.
    """
    settings = with_changes(PreferenceSettings, settings, changes)
    job = PairJob(model, out_dir, settings, seed)
    if settings.lora and settings.lora.start:
        check_base(settings.lora.start, model)
    rows = _rows(job.tokenizer, data, settings, job.window, seed)
    with job.place(rows) as place:
        trainer = _trainer(job, rows, place)
        watch = ChosenWatch(settings.own["beta"], settings.chosen.reference)
        trainer.add_callback(watch)
        result = job.run(trainer, place, _SHOWN)
        held_out = trainer.evaluate() if rows.held_out else {}
        record = job.record(
            rows,
            result,
            tokens=tokens_seen(trainer),
            curves=points(trainer, *_POINT),
            chosen_logprob=watch.numbers(),
            warnings=watch.warnings,
            held_out={n: held_out[f"eval_{n}"] for n in _POINT if f"eval_{n}" in held_out},
        )
        return job.finish(trainer, place, record, RECORD)


_SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "log-prob of chosen",
}
_POINT = (
    *("loss", "learning_rate", "grad_norm", "entropy", "kl"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)


def _rows(tokenizer: Any, data: Any, settings: PreferenceSettings, limit: int, seed: int) -> _Data:
    """Everything that can be refused is refused here."""
    name, drop = name_of(data), settings.bad_rows == "drop"
    cutter = Cutter(name, limit, settings.too_long, drop)
    raw = read_rows(data)
    if settings.loss == "kto":
        answers, counts = read_judged(raw, name, drop_bad=drop)
        found = cutter.judged(tokenizer, answers)
    else:
        pairs, counts = read_pairs(raw, name, drop_bad=drop)
        found = cutter.pairs(tokenizer, pairs)
    train, held_out = split(
        found.rows, settings.held_out_share, lambda row: row["prompt_ids"], seed
    )
    some(train, name, counts + found.counts)
    if settings.loss == "kto":
        batch = settings.batches()["per_device_train_batch_size"]
        train, held_out = (with_mismatched(side, batch, seed) for side in (train, held_out))
    return _Data(train, held_out, counts + found.counts)


def _trainer(job: PairJob[PreferenceSettings], rows: _Data, place: Place) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, KTOConfig

    from posttrain.trainers import preference_trainers as kinds

    settings, loss, own = job.settings, job.settings.chosen, job.settings.own
    start, quantised = settings.lora.start if settings.lora else "", quantisation(settings.lora)
    given: dict[str, Any] = {
        "beta": own["beta"],
        "max_length": None,  # rows are cut already
        "precompute_ref_log_probs": True,  # without reference: keeps TRL from loading one
        # Weights and optimiser stay float32 under autocast: small steps vanish in bfloat16.
        "model_init_kwargs": {"dtype": "float32"},
        **loss.trl,
    }
    kind: Any = kinds.PairTrainer
    if settings.loss == "kto":
        kind = kinds.VerdictTrainer
        given |= {"desirable_weight": own["good_weight"], "undesirable_weight": own["bad_weight"]}
    elif loss.function is not None:
        kind = partial(kinds.ReferenceFreeTrainer, pair_loss=partial(loss.function, **own))
    elif "label_smoothing" in own:
        given["label_smoothing"] = own["label_smoothing"]
    return kind(
        model=_with_adapter(job.model, start, quantised) if start else job.model,
        args=job.arguments(KTOConfig if settings.loss == "kto" else DPOConfig, place, **given),
        train_dataset=Dataset.from_list(rows.train),
        eval_dataset=Dataset.from_list(rows.held_out) if rows.held_out else None,
        processing_class=job.tokenizer,
        peft_config=None if start else adapter_config(settings.lora, "CAUSAL_LM"),
        quantization_config=None if start else quantised,
        cache_folder=cache_folder(settings.reference_cache),
        start=start,
    )


def _with_adapter(model: str, adapter: str, quantised: Any) -> Any:
    """The model with a trained adapter; the reference is the model with the adapter as it was."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        model, dtype="float32", quantization_config=quantised
    )
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)
