"""Decides what extending a checkpoint means: the same weights, another config, a new folder.

No weight is read, so it takes as long as a copy. The model is then right for longer training; what
it can do before that is measured on both, at the old and the new length.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.context.measure import document_perplexity, needle_accuracy, passkey
from pretrain.context.rope import extend_config, window
from pretrain.errors import UsageError
from pretrain.new_folder import check_free, new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Measured:
    """One checkpoint at one length."""

    length: int  # tokens
    needles: dict[float, float]  # depth -> share found
    perplexity: list[float] = field(default_factory=list)  # by part of the window; empty: not asked

    def line(self) -> str:
        """For the reader."""
        found = sum(self.needles.values()) / len(self.needles)
        by_depth = " ".join(f"{depth:g}: {share:.0%}" for depth, share in self.needles.items())
        text = f"{self.length:>8,} tokens  needles found {found:4.0%} (by depth {by_depth})"
        if self.perplexity:
            text += "  perplexity by part " + " ".join(f"{one:.2f}" for one in self.perplexity)
        return text


def extend(
    checkpoint: str | Path,
    out: str | Path,
    length: int,
    *,
    method: str = "yarn",
    base: float | None = None,
) -> dict[str, Any]:
    """Write ``checkpoint`` for a window of ``length`` tokens; the rotary parameters before and
    after. Raises UsageError before anything is written.
    """
    from transformers import AutoConfig

    source, out = Path(checkpoint), Path(out)
    check_free(out)
    if not (source / "config.json").is_file():
        raise UsageError(f"{source} has no config.json: it is no checkpoint folder")
    config = AutoConfig.from_pretrained(source)
    text = config.get_text_config()
    change: dict[str, Any] = {"method": method, "window": [window(config), length]}
    change["rope_parameters"] = [json.loads(json.dumps(text.rope_parameters))]
    extend_config(config, length, method=method, base=base)
    change["rope_parameters"].append(text.rope_parameters)
    with new_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        config.save_pretrained(folder)
        _lengthen_tokenizer(folder / "tokenizer_config.json", length)
        (folder / "extend.json").write_text(json.dumps(change, indent=1) + "\n")
    return change


def _lengthen_tokenizer(path: Path, length: int) -> None:
    """Its own limit would warn, or cut, at the old length."""
    if path.is_file():
        written = json.loads(path.read_text())
        if written.get("model_max_length", length) < length:
            path.write_text(json.dumps(written | {"model_max_length": length}, indent=2) + "\n")


def measure(
    checkpoint: str | Path,
    lengths: Sequence[int],
    *,
    documents: Sequence[str] = (),
    samples: int = 4,
    seed: int = 0,
) -> list[Measured]:
    """Passkeys, and perplexity where there are ``documents``, at each of ``lengths``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    ids = [tokenizer(text)["input_ids"] for text in documents]
    measured = []
    for length in lengths:
        needles = needle_accuracy(model, passkey(tokenizer), length, samples=samples, seed=seed)
        perplexity = document_perplexity(model, ids, length) if ids else []
        measured.append(Measured(length, needles, perplexity))
    return measured
