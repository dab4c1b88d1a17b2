"""Decides how an adapter and its base become one checkpoint, and when they must not.

    W' = W + s B A        LoRA: s = alpha / rank; rsLoRA: alpha / sqrt(rank); DoRA: also rescaled

PEFT merges, in float32, and each weight is rounded once, when it is written. Two comparisons on a
probe stand behind the result, both of log-probs: merged against unmerged, in float32, which must
agree but for the order of sums; and what was read back from the disk against the merged model,
which differs by rounding.

An adapter belongs to a base: every layer that it names must be there, in its shape, and every
tensor of it must arrive. Another name of the base than the one it was trained on is only noted. An
adapter trained over 4-bit weights (QLoRA) is merged into the full-precision base: it was trained
to make up for that rounding, so the merged model is not exactly the one that was trained; its
quality is measured, not proven.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from posttrain.errors import RunError, UsageError
from posttrain.export.checkpoint import DTYPES, load_model, load_tokenizer, save
from posttrain.export.probe import logprobs, probe_of
from posttrain.export.records import shown
from posttrain.preflight import read_config

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?$")
_MERGE_LIMIT = 1e-3  # of any log-prob in float32; sums in another order differ by 1e-5
# Mean over all log-probs of the probe. bfloat16 has 8 bits: 0.01 to 0.05 is usual.
_ROUNDING_LIMIT = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model in float32, and what is known of how it came about."""

    model: Any
    tokenizer: Any
    base: str
    notes: tuple[str, ...]
    largest_gap: float  # of log-probs on the probe, merged against unmerged
    mean_gap: float
    effect: float  # mean change of the log-probs by the adapter


def is_adapter(path: str | Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def merge(adapter: Path, base: str | None = None, *, tolerance: float = _MERGE_LIMIT) -> Merged:
    """Merge in memory. Raises UsageError when the two don't fit, RunError when they disagree."""
    from peft import PeftConfig

    if not is_adapter(adapter):
        raise UsageError(f"{adapter} is not a PEFT adapter: it has no adapter_config.json")
    config = PeftConfig.from_pretrained(str(adapter))
    base, notes = _base_of(config, base)
    shapes = _shapes(adapter)
    check_fit(shapes, base, config)
    tokenizer = load_tokenizer(adapter if (adapter / "tokenizer_config.json").is_file() else base)
    model = load_model(base, torch.float32)
    _make_room(model, shapes, tokenizer)
    _untie(model, shapes)
    probe = probe_of(tokenizer, model)
    plain = logprobs(model, probe)
    wrapped = _wrap(model, adapter, config, shapes)
    unmerged = logprobs(wrapped, probe)
    model = wrapped.merge_and_unload(safe_merge=True)
    gap = (logprobs(model, probe) - unmerged).abs()
    largest, mean = float(gap.max()), float(gap.mean())
    if not largest <= tolerance:
        raise RunError(
            f"merged and unmerged model disagree: log-probs differ by up to {largest:.2g} (mean "
            f"{mean:.2g}), the limit is {tolerance:g}. Nothing was written"
        )
    effect = float((unmerged - plain).abs().mean())
    if effect == 0:
        notes.append("the adapter changes nothing: it was never trained")
    return Merged(model, tokenizer, base, tuple(notes), largest, mean, effect)


def write_merged(merged: Merged, folder: Path, dtype: str, max_shard: str) -> float:
    """Write the merged model in ``dtype`` and read it back; the mean gap of log-probs by rounding.

    Raises RunError when that gap is larger than rounding explains.
    """
    probe = probe_of(merged.tokenizer, merged.model)
    exact = logprobs(merged.model, probe)
    save(merged.model.to(DTYPES[dtype]), merged.tokenizer, folder, max_shard)
    gap = float((logprobs(load_model(folder, torch.float32), probe) - exact).abs().mean())
    limit = _ROUNDING_LIMIT[dtype]
    if not gap <= limit:
        raise RunError(
            f"the written model differs from the merged one: mean log-prob gap {gap:.2g}, and "
            f"rounding to {dtype} explains up to {limit:g}. Nothing was kept"
        )
    return gap


# fit


def _base_of(config: Any, given: str | None) -> tuple[str, list[str]]:
    recorded = config.base_model_name_or_path
    base = given or recorded
    if not base:
        raise UsageError("the adapter does not say what its base is: give --base")
    try:
        found = read_config(base)
    except UsageError as error:
        hint = "" if given else ". The adapter names it as its base; give --base if it moved"
        raise UsageError(f"{error}{hint}") from error
    if getattr(found, "quantization_config", None):
        raise UsageError(
            f"the base {base} is quantised; an adapter is merged into full-precision weights, also "
            "when it was trained over quantised ones: give --base with the original checkpoint"
        )
    notes = []
    if given and recorded and not _same(given, recorded):
        notes.append(f"it was trained on {shown(recorded)}, and is merged into {shown(given)}")
    return base, notes


def _same(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the adapter, by its name in the base model."""
    try:
        with safe_open(adapter / WEIGHTS, "pt") as file:
            return {
                name.removeprefix(_PREFIX): tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118 - a file is no mapping
            }
    except (OSError, ValueError) as error:
        raise UsageError(f"{adapter / WEIGHTS} can't be read: {error}") from error


def check_fit(shapes: Mapping[str, tuple[int, ...]], base: str, config: Any) -> None:
    """Raises UsageError when the adapter is not one for this base; no weights are loaded."""
    from transformers import AutoModelForCausalLM

    if config.is_prompt_learning:
        raise UsageError(f"a {config.peft_type.value} adapter has no weights that could be merged")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(read_config(base))
    layers = dict(empty.named_modules())
    missing, misfits = [], []
    for name, shape in shapes.items():
        part = _PART.search(name)
        if part is None:
            continue
        layer = layers.get(name[: part.start()])
        if layer is None:
            missing.append(name[: part.start()])
        elif (wanted := _wanted(layer, part[1])) and not _fits(part[1], shape, wanted):
            misfits.append(f"{name[: part.start()]}: {part[1]} is {shape}, the layer is {wanted}")
    if missing:
        found = sorted(set(missing))
        raise UsageError(
            f"the adapter does not belong to {base}: {len(found)} layers that it changes are not "
            f"there, the first: {', '.join(found[:3])}"
        )
    if misfits:
        raise UsageError(
            f"the adapter does not belong to {base}: {len(misfits)} shapes differ, "
            f"the first: {misfits[0]}"
        )


def _wanted(layer: nn.Module, part: str) -> tuple[int, int] | None:
    """[out, in] of a layer that the part must fit; None where PEFT knows better."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.Embedding) and part.startswith("embedding"):
        return layer.embedding_dim, layer.num_embeddings
    return None


def _fits(part: str, shape: tuple[int, ...], layer: tuple[int, int]) -> bool:
    """A is [rank, in], B is [out, rank], a magnitude [out]; the rank fits any layer."""
    return shape[-1] == layer[1] if part.endswith("A") else shape[0] == layer[0]


# merging


def _make_room(model: Any, shapes: Mapping[str, tuple[int, ...]], tokenizer: Any) -> None:
    """Tokens that were added in training need rows; the adapter brings them whole."""
    whole = [s for n, s in shapes.items() if not _PART.search(n) and n.endswith("tokens.weight")]
    rows = model.get_input_embeddings().weight.shape[0]
    if whole and whole[0][0] > rows:
        model.resize_token_embeddings(whole[0][0])
        rows = whole[0][0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows}: it is not its own"
        )


def _untie(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """An adapter on one of two tied weights parts them: the other must stay what it was."""
    touched = any("lm_head" in name or "embed_tokens" in name for name in shapes)
    if touched and model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _wrap(model: Any, adapter: Path, config: Any, shapes: Mapping[str, Any]) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        wrapped = PeftModel.from_pretrained(model, str(adapter), config=config).eval()
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"PEFT can't load {adapter} onto its base: {error}") from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise UsageError(f"PEFT can't merge adapters of the type {config.peft_type.value}")
    known = {name.removeprefix(_PREFIX) for name in get_peft_model_state_dict(wrapped)}
    if odd := sorted(known ^ set(shapes)):
        raise UsageError(
            f"{adapter / WEIGHTS} and adapter_config.json differ in {len(odd)} tensors, "
            f"the first: {', '.join(odd[:3])}"
        )
    return wrapped
