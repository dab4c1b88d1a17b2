"""Decides how one stage is trained: AdamW and our cosine, on transformers' ``Trainer``.

The Trainer brings the loop, accumulation by tokens, checkpoints and the exact resume. Ctrl-C and
SIGTERM let the step end and leave a checkpoint. A stage always starts from a saved folder, so that
a run that was killed between or within its stages ends like one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pretrain.errors import RunError
from pretrain.models.vision import TOWER, set_stage
from pretrain.optimizer import forward_dtype, parameter_groups
from pretrain.schedules import cosine
from pretrain.vision.rows import Reader, Row
from pretrain.vision.settings import StageSettings, VisionConfig

_STATE = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes
_BETAS = (0.9, 0.999)  # LLaVA's, which are AdamW's own


def train_stage(
    config: VisionConfig, number: int, model: Any, reader: Reader, rows: Sequence[Row]
) -> tuple[list[dict[str, float]], bool]:
    """Train ``model`` in place; returns the curve (step, loss, rate and norm of each window), and
    whether a Ctrl-C came during the last step.

    Goes on from the newest whole checkpoint in ``checkpoints(config, number)``. Raises
    KeyboardInterrupt after a Ctrl-C and its checkpoint, RunError where the loss is not finite.
    """
    settings, folder = config.stages[number], checkpoints(config, number)
    optimizer = optimizer_of(model, number, settings)
    arguments = _arguments(config, number, len(rows))
    share = partial(
        cosine,
        warmup=math.ceil(settings.warmup * arguments.max_steps),
        total=arguments.max_steps,
        floor=0.0,
    )
    watch = _Watch(number, settings.rows)
    trainer = _Trainer(
        model=model,
        args=arguments,
        data_collator=reader.batch,
        train_dataset=rows,  # type: ignore[arg-type]  # a list is one
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    with watch.signals():
        trainer.train(resume_from_checkpoint=_newest_whole(folder))
    if trainer.state.global_step < arguments.max_steps:
        raise KeyboardInterrupt(
            f"the state after step {trainer.state.global_step} of stage {number} is in {folder}; "
            "the same command goes on from there"
        )
    names = {"step": "step", "loss": "loss", "rate": "learning_rate", "norm": "grad_norm"}
    logs = [log for log in trainer.state.log_history if "loss" in log]
    curve = [{ours: log[theirs] for ours, theirs in names.items()} for log in logs]
    return curve, watch.asked


@torch.no_grad()
def mean_loss(config: VisionConfig, model: Any, reader: Reader, rows: Sequence[Row]) -> float:
    """In nats per learnt token of all rows."""
    model.eval()
    total, n_tokens, dtype = 0.0, 0, forward_dtype(config.dtype)
    for batch in reader.batches(rows, config.micro_rows):
        here = {name: tensor.to(model.device) for name, tensor in batch.items()}
        learnt = int((batch["labels"][:, 1:] >= 0).sum())
        with torch.autocast(model.device.type, dtype, enabled=dtype is not torch.float32):
            total += float(model(**here).loss) * learnt
        n_tokens += learnt
    return total / n_tokens


def checkpoints(config: VisionConfig, number: int) -> Path:
    """Where a stage keeps what it goes on from."""
    return config.out / "checkpoints" / f"stage{number}"


def optimizer_of(model: Any, number: int, settings: StageSettings) -> torch.optim.AdamW:
    """For the parts that the stage trains, the tower at its own rate; the others are frozen."""
    set_stage(model, number, tower=settings.tower_rate > 0)
    named = list(model.named_parameters())
    groups = []
    for in_tower, rate in ((False, settings.rate), (True, settings.tower_rate)):
        part = [weight for name, weight in named if name.startswith(TOWER) == in_tower]
        own = parameter_groups(part, settings.weight_decay)
        groups += [{**group, "lr": rate} for group in own]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=_BETAS)


def _arguments(config: VisionConfig, number: int, n_rows: int) -> TrainingArguments:
    settings, cuda = config.stages[number], torch.cuda.is_available()
    micro = min(config.micro_rows, settings.rows)
    # The Trainer's way: an epoch ends with a step, of as many rows as are left.
    steps_of_epoch = math.ceil(math.ceil(n_rows / micro) / (settings.rows // micro))
    given: dict[str, Any] = dict(
        output_dir=str(checkpoints(config, number)),
        max_steps=settings.steps or math.ceil(settings.epochs * steps_of_epoch),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.rows // micro,
        max_grad_norm=settings.max_grad_norm,
        bf16=forward_dtype(config.dtype) is torch.bfloat16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        dataloader_num_workers=config.workers,
        logging_steps=config.report_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite
        disable_tqdm=True,
        report_to="none",
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        remove_unused_columns=False,
        seed=config.seed,
    )
    with _as_launched():
        arguments = TrainingArguments(**given)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer would spread the model by DataParallel
    return arguments


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


def _newest_whole(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end."""
    whole = []
    for path in folder.glob(f"checkpoint-*/{_STATE}"):
        with contextlib.suppress(ValueError):  # cut short by a kill
            whole.append(int(json.loads(path.read_text())["global_step"]))
    return str(folder / f"checkpoint-{max(whole)}") if whole else None


class _Trainer(Trainer):
    """A resume that takes the weights as ``from_pretrained`` does.

    A model that sees has other names in its file than in memory. The Trainer's own resume knows
    nothing of that, and goes on with the weights that the model had, and a warning.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype="float32")
        self.model.load_state_dict(saved.state_dict())


class _Watch(TrainerCallback):
    """A line every few steps, the end of a run whose loss is no number, and the end by Ctrl-C."""

    def __init__(self, number: int, rows: int) -> None:
        self._number, self._rows = number, rows
        self.asked = False
        self._since, self._step = 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts with the first step of this process."""
        if not self._since:
            self._since, self._step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A window of the curve ends at each checkpoint, so that ``on_log`` judges it first."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        control.should_log |= control.should_save

    def on_log(self, args: Any, state: Any, control: Any, **told: Any) -> None:
        """Raises RunError where the loss or the gradient's norm is not finite."""
        log, step = told["logs"], state.global_step
        if "loss" not in log:
            return
        if not (math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"])):
            raise RunError(
                f"stage {self._number}, step {step}: loss {log['loss']}, norm {log['grad_norm']}: "
                "lower its rate, or look at the data; what is saved is from before"
            )
        speed = (step - self._step) / max(1e-9, time.monotonic() - self._since)
        say(
            f"stage {self._number} step {step}/{state.max_steps} {100 * step // state.max_steps}%  "
            f"loss {log['loss']:.3f}  rate {log['learning_rate']:.1e}  "
            f"norm {log['grad_norm']:.2f}  {speed * self._rows:,.1f} rows/s  "
            f"{(state.max_steps - step) / max(1e-9, speed) / 60:.0f} min left"
        )

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM end the stage after its step; a second one at once."""

        def note(*_: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt("no checkpoint was written at the end")
            self.asked = True
            say("stopping after this step; once more: at once")

        before = {}
        if threading.current_thread() is threading.main_thread():  # no other gets a signal
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def say(text: str) -> None:
    """One line for a person."""
    print(f"pretrain: {text}", file=sys.stderr, flush=True)
