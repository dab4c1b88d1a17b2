"""Running a trainer of TRL: its arguments, its folder, checkpoints, interruption.

Until it is complete, a training lies in ``<out>.unfinished`` beside its place: what it was asked
for, and the trainer's checkpoints. The result appears under its name in one move. Ctrl-C lets the
step end, writes a checkpoint and stops; going on is the same call with ``resume``, and refused
where model, data or settings are others. With the same threads it ends in the same bits.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from posttrain.errors import UsageError
from posttrain.trainers.settings import TrainerSettings, main_rank, ranks

if TYPE_CHECKING:
    from transformers import Trainer

_UNFINISHED = ".unfinished"
_ASKED = "asked.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class Place:
    """Where a training leaves its result, and where it works until then.

    Raises UsageError when the result's place is taken, when an interrupted training lies there and
    ``resume`` is not asked, when there is none and it is, or when it was asked for something else.
    """

    def __init__(self, out_dir: str | Path, asked: Mapping[str, Any], *, resume: bool) -> None:
        self.out = Path(out_dir)
        self.work = self.out.with_name(self.out.name + _UNFINISHED)
        self._asked = json.loads(json.dumps(asked, default=str))
        check_free(self.out)
        if not main_rank():
            return  # the first rank looks, and may have made the folder already
        if resume:
            self._check_same()
        elif self.work.exists():
            raise UsageError(
                f"{self.work} is an interrupted training: go on with it (resume), or remove it"
            )

    def _check_same(self) -> None:
        try:
            before = json.loads((self.work / _ASKED).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"there is no interrupted training {self.work}") from error
        for name in sorted({*before, *self._asked}):
            if before.get(name) != self._asked.get(name):
                raise UsageError(
                    f"{self.work} was started with {name} = {before.get(name)}, and now it is "
                    f"{self._asked.get(name)}: resume with the same, or remove it"
                )

    def __enter__(self) -> Self:
        if not main_rank():
            return self
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / _ASKED).write_text(json.dumps(self._asked) + "\n")
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is kept of a training without a checkpoint."""
        if main_rank() and not self.checkpoint:
            shutil.rmtree(self.work, ignore_errors=True)

    @property
    def checkpoint(self) -> str | None:
        """The newest complete checkpoint."""
        from transformers.trainer_utils import get_last_checkpoint

        return get_last_checkpoint(str(self.work)) if self.work.exists() else None

    @property
    def model(self) -> Path:
        """Where the result is written before it is moved."""
        folder = self.work / "model"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, record: Mapping[str, Any], name: str) -> Path:
        """Put ``model`` with its record in its place, and remove the rest."""
        (self.model / name).write_text(json.dumps(record, indent=1) + "\n")
        os.replace(self.model, self.out)
        shutil.rmtree(self.work, ignore_errors=True)
        return self.out


def check_free(out: Path) -> None:
    """Raise UsageError when the place of a result is taken."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder or remove it")


def arguments(kind: Any, settings: TrainerSettings, folder: Path, seed: int, **own: Any) -> Any:
    """TRL's or transformers' arguments of class ``kind``; ``own`` are the trainer's, and win."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = torch.cuda.is_available()
    fast_bf16 = cuda or torch.cpu._is_avx512_bf16_supported()
    every = settings.checkpoint_every
    given: dict[str, Any] = settings.batches() | dict(
        output_dir=str(folder),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        # TRL turns checkpointing on for memory; here it would only cost a second forward pass.
        gradient_checkpointing=cuda,
        bf16=fast_bf16 if settings.bf16 is None else settings.bf16,
        use_cpu=not cuda,
        ddp_backend=None if cuda or ranks() == 1 else "gloo",
        dataloader_pin_memory=cuda,
        logging_steps=settings.log_every,
        logging_first_step=True,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        save_strategy="steps" if every else "no",
        save_steps=every or 500,
        save_total_limit=2,
        remove_unused_columns=False,  # our rows hold only what is used
        seed=seed,
    )
    with _as_launched():
        return kind(**(given | own))


@contextmanager
def _as_launched() -> Iterator[None]:
    """Inside, LOCAL_RANK is hidden where no launcher set it. DeepSpeed needs it of a rank that is
    alone, and so it stays in that process and its children, where accelerate would look for others.
    """
    hidden = None if "MASTER_ADDR" in os.environ else os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if hidden is not None:
            os.environ["LOCAL_RANK"] = hidden


def run(trainer: Trainer, place: Place) -> Any:
    """Train, from the newest checkpoint where there is one. Returns the trainer's TrainOutput.

    Raises KeyboardInterrupt, with where to go on, after a Ctrl-C and a checkpoint.
    """
    from transformers import PreTrainedModel, PrinterCallback

    trainer.remove_callback(PrinterCallback)  # prints dictionaries where there is no terminal
    if isinstance(trainer.model, PreTrainedModel) and not trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint = partial(_take_weights, trainer)
    with _interruptible(trainer) as asked:
        result = trainer.train(resume_from_checkpoint=place.checkpoint)
    if asked.is_set() and result.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt(
            f"stopped after step {result.global_step} of {trainer.state.max_steps}; the same "
            f"command with resume goes on from {place.work}"
        )
    return result


def _take_weights(trainer: Any, checkpoint: str) -> None:
    """A checkpoint's weights as ``from_pretrained`` reads them.

    The trainer's own resume looks in the file for the names that tensors have in memory. Those of a
    mixture's experts are others there: it would warn, and go on with the experts of the start.
    """
    model = trainer.model
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def points(trainer: Trainer, *names: str) -> list[dict[str, float]]:
    """The curves: of each logged window of training, the fields of ``names`` that it has."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{name: log[name] for name in ("step", *names) if name in log} for log in logs]


def tokens_seen(trainer: Trainer) -> int:
    """As TRL counts them; 0 where it does not."""
    logs = reversed(trainer.state.log_history)
    return int(next((log["num_tokens"] for log in logs if "num_tokens" in log), 0))


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C ends the training at the step's end with a checkpoint."""
    from transformers import TrainerCallback

    asked = threading.Event()

    class StopWhenAsked(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if asked.is_set() and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True
            return control

    def stop(*_: Any) -> None:
        if asked.is_set():  # the second one: at once
            raise KeyboardInterrupt
        asked.set()
        print("stopping after this step; once more: at once", file=sys.stderr)

    trainer.add_callback(StopWhenAsked())
    if threading.current_thread() is not threading.main_thread() or ranks() > 1:
        yield asked  # ranks that stop after different steps would wait for each other for ever
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def plain_output() -> Iterator[None]:
    """Inside, transformers and datasets draw no bars into a log file."""
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    both = (logging, datasets_logging)
    for one in both if drawn else ():
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in both if drawn else ():
            one.enable_progress_bar()


# models


def check_checkpoint(model: str | Path) -> None:
    """Raise UsageError, saying what is missing, for a folder that is no checkpoint."""
    folder = Path(model)
    if folder.is_dir():
        missing = [] if (folder / "config.json").is_file() else ["config.json"]
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            missing.append("weights (*.safetensors)")
        if missing:
            raise UsageError(f"{folder} is not a checkpoint: it has no {' and no '.join(missing)}")
    elif folder.is_absolute() or str(model).startswith(".") or str(model).count("/") > 1:
        raise UsageError(f"there is no checkpoint folder {folder}")


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder or a hub name. Raises UsageError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a tokenizer from {name}: {error}") from error


def checkpoint_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a checkpoint one can chat with. Raises UsageError saying what is missing."""
    check_checkpoint(model)
    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template is None:
        raise UsageError(f"the tokenizer of {model} has no chat template")
    return tokenizer


def window(model: str | Path, settings: TrainerSettings) -> int:
    """``max_length``, or the model's own window where that is shorter."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model)).get_text_config()
    own = int(getattr(config, "max_position_embeddings", 0) or settings.max_length)
    return min(settings.max_length, own)
