"""Supervised fine-tuning: our data, masks, checks and reports; TRL's SFTTrainer trains.

TRL is given token ids and labels, so that nothing of the conversation is left for it to decide.
Everything a user can get wrong is checked before a model is loaded or a folder made.
Left out of TRL on purpose: batches of similar lengths (with short and long answers as two styles, a
batch is mostly of one style; the one trial of it ended far below random ones); evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UsageError
from posttrain.storage.jsonl import finite
from posttrain.storage.provenance import package_versions
from posttrain.trainers.adapters import settle_quantised
from posttrain.trainers.conversations import name_of
from posttrain.trainers.examples import Example, Examples, make_examples
from posttrain.trainers.masks import Renderer
from posttrain.trainers.mixing import mixed, pass_size
from posttrain.trainers.packing import packed_implementation
from posttrain.trainers.preview import EXAMPLES, parts_of, show
from posttrain.trainers.settings import main_rank, with_changes
from posttrain.trainers.sft_model import check_lora, load_model, new_adapter, save
from posttrain.trainers.sft_settings import SftSettings
from posttrain.trainers.training import (
    Place,
    arguments,
    check_free,
    plain_output,
    points,
    run,
    tokens_seen,
    window,
)
from posttrain.trainers.vocabulary import Starts, prepare_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Sequence[Mapping[str, Any]]
_CURVES = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")
_GATHER = "stage3_gather_16bit_weights_on_model_save"


def sft(
    model: str | Path,
    data: Rows | str | Path | Dataset | None,
    out_dir: str | Path,
    settings: SftSettings | None = None,
    *,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Fine-tune a checkpoint on conversations; the result is an ordinary checkpoint folder.

    ``data``: rows, a file, a saved data set, a Dataset; None where ``mix`` names the files.
    ``changes`` are fields of SftSettings by name (``packing="batch"``). ``sft.json`` in the result
    holds the settings, the report of the data, the first examples and the loss curve.

    Raises UsageError for bad input, before a model is loaded and with nothing written. After
    Ctrl-C it raises KeyboardInterrupt; ``resume=True`` goes on from there.
    """
    settings = with_changes(SftSettings, settings, changes)
    check_free(Path(out_dir))
    ready = prepare(model, data, settings, seed=seed)
    place = Place(out_dir, ready.asked(), resume=settings.resume)
    if main_rank() and not settings.quiet:
        show(ready.shown, ready.report)
    return _train(ready, place)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A fine-tuning that is ready to start: everything is checked, nothing is loaded."""

    model: str
    settings: SftSettings
    seed: int
    tokenizer: Any
    starts: Starts  # of new tokens
    order: list[Example]  # in the order of training where there is a mix
    report: dict[str, Any]
    shown: list[dict[str, Any]]  # the first examples, in parts
    digest: str

    def asked(self) -> dict[str, Any]:
        """What must be the same when an interrupted training goes on."""
        return {
            "model": self.model,
            "seed": self.seed,
            "examples": self.digest,
            **self.settings.asked(),
        }


def prepare(
    model: str | Path,
    data: Rows | str | Path | Dataset | None,
    settings: SftSettings | None = None,
    *,
    seed: int = 0,
) -> Prepared:
    """Read, check and render everything. Raises UsageError; writes nothing."""
    settings = settings or SftSettings()
    sources = _sources(data, settings)
    _check_more(settings.trl)
    _check_deepspeed(settings)
    tokenizer, starts = prepare_tokenizer(model, settings)
    check_lora(settings.lora, str(model), starts)
    settings.batches()
    thinking = "template" if settings.thinking == "split" else settings.thinking
    renderer = Renderer(tokenizer, thinking=thinking, variables=settings.template_args)
    examples = make_examples(sources, renderer, settings, window(model, settings))
    report = examples.report()
    order = examples.rows
    if settings.mix:
        order, report["mix"] = _mix(examples, settings, seed)
    shown = [
        {"source": e.source, "row": e.row, "parts": parts_of(tokenizer, e)}
        for e in order[:EXAMPLES]
    ]
    digest = examples.digest()
    return Prepared(str(model), settings, seed, tokenizer, starts, order, report, shown, digest)


def _sources(data: Any, settings: SftSettings) -> dict[str, Any]:
    if (data is None or data == "") == (not settings.mix):
        raise UsageError("give either data or mix = {file = share, ...}, one of the two")
    return {name: name for name in settings.mix} if settings.mix else {name_of(data): data}


def _check_more(given: Mapping[str, Any]) -> None:
    if not given:
        return  # trl is slow to import
    from trl import SFTConfig

    unknown = sorted(set(given) - set(SFTConfig.__dataclass_fields__))
    if unknown:
        raise UsageError(f"trl: SFTConfig has no argument {', '.join(map(repr, unknown))}")


def _check_deepspeed(settings: SftSettings) -> None:
    path = settings.deepspeed
    if not path:
        return
    try:
        zero = json.loads(Path(path).read_text()).get("zero_optimization", {})
    except (OSError, ValueError) as error:
        raise UsageError(f"deepspeed: can't read {path}: {error}") from error
    if zero.get("stage") == 3 and not zero.get(_GATHER):
        raise UsageError(
            f"deepspeed: with stage 3, {path} must set {_GATHER}: true in zero_optimization, or no "
            "rank has the weights to save"
        )
    if zero.get("stage") == 3 and settings.new_tokens:
        raise UsageError("new_tokens: not with ZeRO-3, add them in a training of one rank first")


def _mix(
    examples: Examples, settings: SftSettings, seed: int
) -> tuple[list[Example], dict[str, Any]]:
    rows = {name: [e for e in examples.rows if e.source == name] for name in settings.mix}
    sizes = {name: len(found) for name, found in rows.items()}
    total = settings.steps * settings.batch_size
    total = total or round(settings.epochs * pass_size(sizes, settings.mix))
    order = [rows[name][row] for name, row in mixed(sizes, settings.mix, total, seed)]
    report = {}
    for name in settings.mix:
        drawn = sum(example.source == name for example in order)
        passes = round(drawn / sizes[name], 3)
        report[name] = {"share": drawn / total, "examples": drawn, "passes": passes}
    return order, report


def _train(ready: Prepared, place: Place) -> Path:
    settings = ready.settings
    with place, plain_output():
        trainer = make_trainer(ready, place.work)
        result = run(trainer, place)
        folder = place.model
        save(trainer, ready.tokenizer, folder, ready.model, ready.starts)
        record = {
            "model": ready.model,
            "seed": ready.seed,
            "rows": sum(ready.report["rows"].values()),
            "settings": settings.model_dump(mode="json"),
            "data": ready.report,
            "examples": ready.shown,
            "steps": result.global_step,
            "seconds": result.metrics["train_runtime"],
            "tokens": tokens_seen(trainer),
            "loss": result.training_loss,
            "losses": points(trainer, *_CURVES),
            "versions": package_versions(),
        }
        if not main_rank():
            return place.out
        return place.finish(finite(record), "sft.json")


def make_trainer(ready: Prepared, folder: Path) -> Any:
    """TRL's SFTTrainer with everything in it."""
    from datasets import Dataset
    from trl import SFTTrainer

    args = _arguments(ready, folder)
    device = args.device.type  # joins the other ranks before a model is loaded
    packed = ready.settings.packing != "off"
    attention = packed_implementation(device, args.bf16) if packed else None
    model = load_model(
        ready.model, ready.settings, ready.starts, bf16=args.bf16, attention=attention
    )
    columns = {
        "input_ids": [example.token_ids for example in ready.order],
        "labels": [example.labels for example in ready.order],
    }
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=ready.tokenizer,
        peft_config=new_adapter(ready.settings, model, ready.starts),
    )
    settle_quantised(trainer, ready.settings.lora.start if ready.settings.lora else "")
    return trainer


def _arguments(ready: Prepared, folder: Path) -> Any:
    from trl import SFTConfig

    settings = ready.settings
    rows = settings.packing == "rows"
    given: dict[str, Any] = {
        "max_length": settings.max_length if rows else None,  # else nothing is left to cut
        "packing": rows,
        "padding_free": settings.packing == "batch",
        "neftune_noise_alpha": settings.neftune_alpha or None,
        "logging_first_step": False,
        "deepspeed": settings.deepspeed or None,
    }
    if settings.mix:
        given["num_train_epochs"] = 1  # the order holds every pass
        given["train_sampling_strategy"] = "random" if rows else "sequential"
    return arguments(SFTConfig, settings, folder, ready.seed, **(given | settings.trl))
