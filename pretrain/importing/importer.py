"""Decides what importing open weights means: check, load, try, write, read back.

    files -> config -> weights -> tokenizer -> generation -> a short continuation -> the new folder

Everything is looked at before anything is written, and what is written is loaded once more and has
to give the same logits. transformers reads and writes; no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import RunError, UsageError
from pretrain.importing.files import check_weights
from pretrain.importing.licence import licence_files, licence_of
from pretrain.importing.report import ImportReport
from pretrain.importing.source import Source, locate
from pretrain.importing.tokenizer_findings import check_tokenizer
from pretrain.new_folder import check_free, new_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_PROMPT = "The capital of France is"
_NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What an import may do."""

    revision: str | None = None  # of a name on the hub: branch, tag or commit
    dtype: str = "auto"  # of the written weights; auto keeps what they are
    allow_pickle: bool = False
    prompt: str = _PROMPT  # of the trial continuation
    deadline_s: float = 30.0  # for the hub to answer at all

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise UsageError(f"dtype {self.dtype!r}: auto, float32, bfloat16 or float16")


def import_checkpoint(
    source: str | Path, out: str | Path, settings: ImportSettings | None = None
) -> ImportReport:
    """Bring a causal language model in as an ordinary folder, with ``import.json`` and
    ``import.txt``. Raises UsageError, with every failed finding, before anything is written.
    """
    settings = settings or ImportSettings()
    check_free(Path(out))
    found = locate(
        str(source),
        revision=settings.revision,
        allow_pickle=settings.allow_pickle,
        deadline_s=settings.deadline_s,
    )
    report = ImportReport(found.name)
    if found.gguf:
        report.add("weights", "note", f"{found.gguf}: GGUF, unpacked to full precision")
        kind = "gguf"
    else:
        kind, detail = check_weights(found.folder, allow_pickle=settings.allow_pickle)
        report.add("weights", "ok" if kind == "safetensors" else "note", detail)
    config = _config(found)
    tokenizer = _tokenizer(found)
    check_tokenizer(report, tokenizer, config)
    _stop_if_failed(report)
    model = _model(found, kind, settings, report)
    _check_model(report, model)
    _check_generation_config(report, model, tokenizer)
    licence = licence_of(found.folder)
    report.add("licence", "note", licence or "nothing is said of it in the folder")
    probe, logits = _try(report, model, tokenizer, settings.prompt)
    _stop_if_failed(report)
    with new_folder(Path(out)) as folder:
        _write(folder, model, tokenizer, found.folder)
        del model
        _read_back(report, folder, probe, logits)
        (folder / "import.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n")
        (folder / "import.txt").write_text(report.text() + "\n")
    return report


def _stop_if_failed(report: ImportReport) -> None:
    if report.failed:
        wrong = "\n".join(f"  {one.name}: {one.detail}" for one in report.failed)
        raise UsageError(f"{report.source} was not imported:\n{wrong}")


def _config(source: Source) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(source.folder, **_reading(source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{source.name}: its config cannot be read: {_first(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{source.name} is of the type {config.model_type}, for which transformers has no "
            "causal language model"
        )
    if method := getattr(config, "quantization_config", None):
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise UsageError(
            f"{source.name} is quantised ({name}): import the unquantised weights, which can be "
            "trained"
        )
    return config


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
    if not source.gguf and not any((source.folder / name).is_file() for name in names):
        raise UsageError(f"{source.name} has no tokenizer: none of {', '.join(names)}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, **_reading(source)
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageError(f"{source.name}: its tokenizer cannot be read: {_first(error)}") from error
    return tokenizer


def _model(
    source: Source, kind: str, settings: ImportSettings, report: ImportReport
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, GgufConfig

    wanted: dict[str, Any] = {"dtype": settings.dtype, "output_loading_info": True}
    if kind == "gguf":
        wanted["quantization_config"] = GgufConfig(dequantize=True)
    else:
        wanted["use_safetensors"] = kind == "safetensors"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder, **wanted, **_reading(source)
        )
    except Exception as error:  # unpicklers and parsers raise what they like
        raise UsageError(f"{source.name}: its weights cannot be read: {_first(error)}") from error
    if kind == "gguf":  # plain weights now, which transformers still takes for packed ones
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
    report.architecture = type(model).__name__
    report.parameters = sum(weight.numel() for weight in model.parameters())
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or info["mismatched_keys"]:
        wrong = [*missing, *map(str, info["mismatched_keys"])]
        report.add("tensors", "failed", f"{len(wrong)} are missing, such as {wrong[0]}")
    elif unexpected:
        report.add("tensors", "note", f"{len(unexpected)} have no place, such as {unexpected[0]}")
    else:
        report.add("tensors", "ok", "each has its place")
    model.eval()
    return model


def _reading(source: Source) -> dict[str, Any]:
    """What every reader of the folder is told: no code of its own, and which file is the GGUF."""
    return {"trust_remote_code": False} | ({"gguf_file": source.gguf} if source.gguf else {})


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _check_model(report: ImportReport, model: PreTrainedModel) -> None:
    import torch

    sick = [name for name, one in model.named_parameters() if not torch.isfinite(one).all()]
    if sick:
        report.add("values", "failed", f"{len(sick)} tensors hold NaN or infinity, as {sick[0]}")
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()})
    report.add("dtype", "ok" if len(dtypes) == 1 else "note", ", ".join(dtypes))
    _check_tied(report, model)


def _check_tied(report: ImportReport, model: PreTrainedModel) -> None:
    """transformers unties what a file holds twice and differently, and leaves the config as it is;
    an engine that believes the config would drop the output matrix."""
    import torch

    inner, outer = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    equal = inner is outer or (inner.shape == outer.shape and torch.equal(inner, outer))
    says_tied = model.config.get_text_config().tie_word_embeddings
    if says_tied and not equal:
        report.add(
            "tied weights",
            "failed",
            "the config ties the output to the embedding, but lm_head.weight is another matrix: "
            "tie_word_embeddings should be false",
        )
    elif says_tied:
        report.add("tied weights", "ok", "output and input embedding are one matrix")
    else:
        also = ", though input and output embedding are equal" if equal else ""
        report.add("tied weights", "note" if equal else "ok", f"not tied{also}")


def _check_generation_config(
    report: ImportReport, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    config, rows = model.generation_config, model.get_input_embeddings().weight.shape[0]
    wrong = []
    for role in ("bos", "eos", "pad"):
        ids = getattr(config, f"{role}_token_id")
        wrong += [
            f"{role} {one}"
            for one in (ids if isinstance(ids, list) else [ids])
            if one is not None and not 0 <= one < rows
        ]
    try:
        config.validate(strict=True)
    except ValueError as error:
        wrong.append(_first(error))
    if wrong:
        report.add("generation", "failed", "; ".join(wrong))
        return
    eos = config.eos_token_id
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not ends and tokenizer.eos_token_id is not None:
        config.eos_token_id = tokenizer.eos_token_id
        report.add("generation", "note", f"no end was set: {tokenizer.eos_token_id} is now")
    else:
        report.add("generation", "ok" if ends else "note", f"ends at {ends or 'nothing'}")


def _try(
    report: ImportReport, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> tuple[Tensor, Tensor]:
    """A greedy continuation, and the logits on it that the written folder has to repeat."""
    import torch

    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad():
        probe = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        logits = model(input_ids=probe, use_cache=False).logits
        prompted = torch.log_softmax(logits[0, : ids.shape[1] - 1].float(), -1)
    if not torch.isfinite(logits).all():
        report.add("trial", "failed", "its logits are not finite")
        return probe, logits
    text = tokenizer.decode(probe[0, ids.shape[1] :])
    report.add("trial", "ok", f"{prompt!r} goes on {text!r}")
    if ids.shape[1] > 1:
        loss = -prompted.gather(1, ids[0, 1:, None]).mean().item()
        chance = math.log(logits.shape[-1])
        detail = f"{loss:.2f} nats per token of the prompt, guessing has {chance:.2f}"
        doubt = ": an untrained model, or another model's tokenizer?" if loss > chance else ""
        report.add("prompt loss", "note" if doubt else "ok", detail + doubt)
    return probe, logits


def _write(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path
) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in licence_files(source):
        shutil.copyfile(path, folder / path.name)
    if (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", folder / "README.md")


def _read_back(report: ImportReport, folder: Path, probe: Tensor, logits: Tensor) -> None:
    """The written folder gives the same logits, bit for bit. Raises RunError."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        again = model(input_ids=probe, use_cache=False).logits
    gap = float((again.float() - logits.float()).abs().max())
    if not gap <= 1e-5:
        raise RunError(f"the written folder gives other logits, by up to {gap:g}: nothing is kept")
    report.add("read back", "ok", f"the written folder gives the same logits (gap {gap:g})")
