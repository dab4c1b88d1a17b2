"""Runs a Hugging Face classification checkpoint in this process, so that only its tokens count.

A score must not depend on what else is in the batch. transformers reads a sequence's score at the
last token that is not ``config.pad_token_id``: with pad = eos, or no pad token, that is another
place or an error. Here rows are padded on the right (an encoder reads its first token, a decoder's
last token never sees what follows) with an id that ends no row, which becomes ``pad_token_id`` for
that pass. So the score is always read at the last real token, as vLLM does. Whether that holds for
the architecture is tried out when it is loaded: a probe alone against the same probe in a batch.

Logits are raw. The head of a half-precision model computes in float32, as in vLLM: a bfloat16
logit near 10 has steps of 0.06.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

from rewards.errors import UsageError, did_you_mean
from rewards.model.failures import Unjudged
from rewards.model.reading import (
    Reader,
    ReadingSettings,
    checkpoint_folder,
    load_tokenizer,
)

if TYPE_CHECKING:
    import torch

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings(ReadingSettings):
    """How a checkpoint is run in this process."""

    label: int | str | None = None  # index or name, of a head with several labels
    dtype: str = "auto"  # "auto" is the checkpoint's own
    device: str = "auto"  # "auto" is cuda where there is one
    token_budget: int = 16_384  # tokens of a forward pass, padding included
    wait_s: float = 0.005  # how long a call waits for others to share its pass

    def __post_init__(self) -> None:
        ReadingSettings.__post_init__(self)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype = {self.dtype!r}.{did_you_mean(self.dtype, DTYPES)}")
        if self.token_budget < 1 or not 0 <= self.wait_s <= 10:
            raise UsageError("token_budget must be at least 1, and wait_s between 0 and 10 seconds")


class Checkpoint:
    """A loaded model with its tokenizer. ``suffix`` is the architecture that is asked for.

    Raises UsageError for a folder that is no such checkpoint, a head that was never trained,
    several labels and none chosen, a tokenizer of another model, or scores that depend on padding.
    """

    def __init__(self, path: str | Path, suffix: str, settings: LocalSettings) -> None:
        what = "reward model"
        folder = checkpoint_folder(path, what)
        config = _config(folder, suffix)
        self.labels = int(config.num_labels)
        self.label = choose_label(settings.label, config.id2label, str(folder), suffix)
        tokenizer = load_tokenizer(str(folder), what)
        self.reader = Reader(tokenizer, _positions(config), settings, f"{what} {folder}")
        self._model = _load(folder, suffix, settings)
        self._config = self._model.config.get_text_config()
        pad = self._config.pad_token_id
        self._config.use_cache = False  # nothing is generated
        rows = int(self._model.get_input_embeddings().weight.shape[0])
        if len(tokenizer) > rows:
            raise UsageError(
                f"{what}: the tokenizer of {folder} has {len(tokenizer)} tokens and the model "
                f"knows {rows}: they do not belong together"
            )
        self._check_padding(folder)
        if suffix == SEQUENCE and settings.eos == "auto":
            self._warn_of_pad(pad, folder)

    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Raw logits in float32 on the CPU: [B, labels], or [B, T, labels] of a token model."""
        import torch

        longest = max(map(len, rows))
        pad = self._filler(rows)
        padded = [[*row, *[pad] * (longest - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        self._config.pad_token_id = pad
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor(padded, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
            )
        result: torch.Tensor = out.logits.float().cpu()
        return result

    def _warn_of_pad(self, pad: int | None, folder: Path) -> None:
        """Where transformers would read the score elsewhere, the training may have done so too."""
        if pad is not None and self.reader.probe_ids[-1] == pad:
            warnings.warn(
                f"reward model {folder}: its inputs end in its pad token. The score is read there; "
                "a model trained with transformers' own forward learnt it one token earlier: then "
                "pass eos='strip', else eos='keep'",
                stacklevel=4,
            )

    def _filler(self, rows: Sequence[Sequence[int]]) -> int:
        """An id that is the last of no row, and not EOS, which some encoders look for."""
        eos = self._config.eos_token_id
        taken = {row[-1] for row in rows} | set(eos if isinstance(eos, list) else [eos])
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def _check_padding(self, folder: Path) -> None:
        ids = self.reader.probe_ids[: max(1, self.reader.window // 2)]
        alone = self.logits([ids])[0]
        beside = self.logits([ids, [*ids, *ids]])[0]
        beside = beside[: len(ids)] if beside.dim() == 2 else beside
        gap = float((alone - beside).abs().max() / alone.abs().max().clamp(min=1.0))
        allowed = 1e-3 if self._model.dtype.itemsize == 4 else 0.1
        if not gap <= allowed:  # NaN too
            raise UsageError(
                f"reward model: the scores of {folder} depend on padding (a relative gap of "
                f"{gap:.2g}); its architecture {type(self._model).__name__} cannot be batched here"
            )


def choose_label(label: int | str | None, names: dict[int, str], where: str, suffix: str) -> int:
    """The index of ``label``; the only one by default, and of a token model's two the second."""
    if label is None:
        if len(names) == 1:
            return 0
        if suffix == TOKEN and len(names) == 2:
            return 1  # TRL and others train [bad, good]
        raise UsageError(
            f"reward model: {where} has {len(names)} labels; choose one with label=: {names}"
        )
    if isinstance(label, str):
        for index, name in names.items():
            if name == label:
                return int(index)
        raise UsageError(
            f"reward model: {where}: label {label!r}.{did_you_mean(label, names.values())}"
        )
    if isinstance(label, bool) or label not in names:
        raise UsageError(f"reward model: {where} has no label {label!r}; it has {names}")
    return label


def finite(value: float) -> float:
    """Raises Unjudged for NaN and infinities."""
    if not abs(value) < float("inf"):
        raise Unjudged(f"the model's score is {value}")
    return value


def _config(folder: Path, suffix: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UsageError(f"reward model: the config of {folder} can't be read: {error}") from error
    found = list(config.architectures or ())
    if not any(name.endswith(suffix) for name in found):
        raise UsageError(
            f"reward model: {folder} holds {found or 'no named architecture'}, not a ...{suffix}"
        )
    return config


def _positions(config: Any) -> int:
    return max(0, int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0))


def _load(folder: Path, suffix: str, settings: LocalSettings) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = getattr(transformers, f"AutoModel{suffix}")
    try:
        model, report = loader.from_pretrained(
            folder, dtype=settings.dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, PickleError) as error:
        raise UsageError(f"reward model: {folder} can't be loaded: {error}") from error
    untrained = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if untrained:
        shown = ", ".join(untrained[:5])
        raise UsageError(
            f"reward model: {folder} has no weights for {shown} ({len(untrained)} in all), so its "
            "scores would be random: was the score head saved?"
        )
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"reward model: device {device!r} can't be used: {error}") from error
    _full_precision_head(model)
    return model


def _full_precision_head(model: Any) -> None:
    import torch

    for head in (getattr(model, "score", None), getattr(model, "classifier", None)):
        if isinstance(head, torch.nn.Linear) and head.weight.dtype.itemsize == 2:
            head.float()
            head.register_forward_pre_hook(lambda _, given: (given[0].float(),))
