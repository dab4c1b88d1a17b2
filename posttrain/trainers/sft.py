"""Decides how supervised fine-tuning is done: TRL's SFTTrainer, loss on the assistant's words only.

Which tokens are the assistant's is told by the generation markers of the chat template. A template
without them is replaced during training by TRL's marked edition of it, where TRL has one; else it
is an error, because training on the questions too is not what was asked for.

Everything a user can get wrong is checked before a model is loaded or a folder made.
Left out of TRL on purpose: packing (without FlashAttention it becomes one long row whose attention
costs its square); batches of similar lengths (with short and long answers as two styles, a batch
is mostly of one style; the one trial of it ended far below random ones); evaluation; checkpoints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from posttrain.config import Count, Positive, Settings
from posttrain.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class SftSettings(Settings):
    """Length and pace of fine-tuning. The rates suit full training of a model of a few million."""

    steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="optimiser steps; 0: epochs decides"
    )
    epochs: Positive = Field(default=1.0, description="passes over the data, where steps is 0")
    batch_size: Count = Field(default=32, description="conversations in one step")
    learning_rate: Positive = Field(
        default=3e-4, description="peak rate of AdamW; falls along a cosine"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=10, description="linear warm-up, in steps"
    )
    max_length: Count = Field(
        default=1024, description="longer conversations are cut at this many tokens"
    )
    bf16: bool | None = Field(
        default=None, description="bfloat16 autocast; None: where hardware has it"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads; 0 leaves torch's choice"
    )


Rows = Sequence[Mapping[str, Any]]


def sft(
    model: str | Path,
    data: Rows | str | Path | Dataset,
    out_dir: str | Path,
    settings: SftSettings | None = None,
    *,
    seed: int = 0,
) -> Path:
    """Fine-tune a checkpoint on conversations; the result is an ordinary checkpoint folder."""
    settings = settings or SftSettings()
    out = _free_place(out_dir)
    rows = _rows(data)
    tokenizer = _tokenizer(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        trainer = _trainer(str(model), tokenizer, rows, _arguments(settings, temporary, seed))
        result = trainer.train()
        _save(trainer, tokenizer, temporary)
        record = {
            "model": str(model),
            "rows": len(rows),
            "seed": seed,
            "settings": settings.model_dump(),
            "seconds": result.metrics["train_runtime"],
            "steps": result.global_step,
            "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        }
        (temporary / "sft.json").write_text(json.dumps(record, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp's own mode would lock other users' servers out
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _free_place(out_dir: str | Path) -> Path:
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder or remove it")
    return out


def _rows(data: Rows | str | Path | Dataset) -> list[dict[str, Any]]:
    """The conversations, checked one by one."""
    source: Iterable[Any]
    if isinstance(data, (str, Path)):
        source, name = _read(Path(data)), str(data)
    else:
        source, name = data, "the data"
    rows = []
    for number, row in enumerate(source, 1):
        problem = _problem(row)
        if problem:
            raise UsageError(f"{name}, row {number}: {problem}")
        rows.append({"messages": [dict(message) for message in row["messages"]]})
    if not rows:
        raise UsageError(f"{name} holds no conversations")
    return rows


def _problem(row: Any) -> str | None:
    """What is wrong with a row, if anything."""
    if not isinstance(row, Mapping) or "messages" not in row:
        found = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        return f"no 'messages' column (found: {found})"
    messages = row["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return "'messages' must be a list of at least one message"
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            return "every message needs a 'role' and a 'content'"
    if not any(message["role"] == "assistant" for message in messages):
        return "no message has the role 'assistant', so there is nothing to learn"
    return None


def _read(path: Path) -> Iterable[Any]:
    if not path.is_file():
        raise UsageError(f"there is no data file {path}")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix not in (".jsonl", ".json"):
        raise UsageError(f"{path}: conversations are read from .jsonl or .parquet files")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return rows


def _tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, after making sure that it is a checkpoint one can chat with."""
    from transformers import AutoTokenizer

    folder = Path(model)
    if folder.is_dir():
        missing = [] if (folder / "config.json").is_file() else ["config.json"]
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            missing.append("weights (*.safetensors)")
        if missing:
            raise UsageError(f"{folder} is not a checkpoint: it has no {' and no '.join(missing)}")
    elif folder.is_absolute() or str(model).startswith(".") or str(model).count("/") > 1:
        raise UsageError(f"there is no checkpoint folder {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a tokenizer from {model}: {error}") from error
    _check_template(tokenizer, model)
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerBase, model: str | Path) -> None:
    if tokenizer.chat_template is None:
        raise UsageError(f"the tokenizer of {model} has no chat template")
    if _MARKER.search(tokenizer.chat_template):
        return
    from trl.chat_template_utils import get_training_chat_template

    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UsageError(
            f"the chat template of {model} does not mark what the assistant says: enclose it in "
            "{% generation %} ... {% endgeneration %}"
        ) from error


def _arguments(settings: SftSettings, folder: Path, seed: int) -> Any:
    import torch
    from trl import SFTConfig

    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = torch.cuda.is_available()
    fast_bf16 = cuda or torch.cpu._is_avx512_bf16_supported()
    return SFTConfig(
        output_dir=str(folder),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        max_length=settings.max_length,
        assistant_only_loss=True,
        # TRL turns checkpointing on for memory; here it would only cost a second forward pass.
        gradient_checkpointing=cuda,
        bf16=fast_bf16 if settings.bf16 is None else settings.bf16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        # Weights and optimiser stay float32 under autocast: small steps vanish in bfloat16.
        model_init_kwargs={"dtype": "float32"},
        logging_steps=10,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        save_strategy="no",
        seed=seed,
    )


def _trainer(
    model: str, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], arguments: Any
) -> SFTTrainer:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # prints dictionaries where there is no terminal
    return trainer


def _save(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Only what an ordinary checkpoint holds: the trainer's own leavings are removed first."""
    for leftover in folder.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
