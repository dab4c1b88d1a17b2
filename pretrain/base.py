"""Decides what making a base checkpoint means: corpus, tokenizer, model, training, folder.

The folder is an ordinary one, as ``from_pretrained`` and vLLM expect it, plus ``pretrain.json``
with the settings and what the run measured. It appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.corpus import CorpusSettings, documents
from pretrain.model import ModelSettings, new_model
from pretrain.packing import pack
from pretrain.tokenizer import train_tokenizer
from pretrain.train import TrainReport, TrainSettings, train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_SAMPLE = 10_000  # documents that are enough to learn the merges from
_PLAIN: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """Everything about a base model except where it goes and its seed."""

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    vocab_size: int = 512
    documents: int = 0  # 0 renders as many as one pass of the training needs


def make_base(out_dir: str | Path, settings: BaseSettings | None = None, *, seed: int = 0) -> Path:
    """Render a corpus, train a tokenizer and a model on it, and save an ordinary checkpoint."""
    settings = settings or BaseSettings()
    out = _free_place(out_dir)
    sample = list(documents(settings.corpus, _TOKENIZER_SAMPLE, seed))
    tokenizer = train_tokenizer(
        sample, vocab_size=settings.vocab_size, max_length=settings.model.max_length
    )
    model = new_model(settings.model, tokenizer, seed)
    ids = _token_ids(settings, tokenizer, sample, seed)
    row_tokens = settings.training.row_tokens
    rows = pack(ids, row_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)
    report = train(model, rows, settings.training, seed=seed)
    save(out, model, tokenizer, _record(settings, report, model, seed))
    if report.interrupted:
        raise KeyboardInterrupt(f"stopped early; what was learnt so far is in {out}")
    return out


def _token_ids(
    settings: BaseSettings, tokenizer: PreTrainedTokenizerBase, sample: list[str], seed: int
) -> list[list[int]]:
    """The documents to train on, as many as the settings say or as one pass needs."""
    count = settings.documents
    if not count:
        training = settings.training
        lengths = [len(ids) + 1 for ids in tokenizer(sample[:1000], **_PLAIN)["input_ids"]]
        wanted = training.steps * training.rows_per_step * training.row_tokens
        count = wanted * len(lengths) // sum(lengths) + 1
    texts = list(documents(settings.corpus, count, seed))
    return list(tokenizer(texts, **_PLAIN)["input_ids"])


def _free_place(out_dir: str | Path) -> Path:
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another folder or remove it")
    return out


def _record(
    settings: BaseSettings, report: TrainReport, model: PreTrainedModel, seed: int
) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **asdict(report),
    }


def save(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the checkpoint beside its place and rename it there, so no half of one is ever seen.

    ``weights`` are the model's where its own tensors are divided over ranks.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        (temporary / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp's own mode would lock other users' servers out
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
