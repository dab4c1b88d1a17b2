"""LoRA: which weights are trained, under which names they travel, and how they are put together.

    y = W x + (alpha / rank) B A x        A [rank, in] random, B [out, rank] zero at the start

(Hu et al., arXiv:2106.09685). PEFT puts the layers into the model in place, so the model keeps its
class; everything but A and B is frozen. Turned off, the adapter leaves the start policy, which is
therefore the reference of a KL without a second model.

PEFT names a wrapped layer's weight ``<layer>.base_layer.weight`` and its adapter
``<layer>.lora_A.default.weight``. Engines and checkpoints know ``<layer>.weight`` for the one and,
in an adapter folder, ``base_model.model.<layer>.lora_A.weight`` for the other.

Left out: DoRA, rank-stabilised scaling, adapters on embeddings and on the output head (a tied head
would no longer be tied). Frozen weights in four bits are in ``quantised``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from posttrain.config import LoraSettings
from posttrain.errors import RunError, UsageError

_NAME = "default"  # PEFT's for the only adapter
_PREFIX = "base_model.model."  # PEFT's, in adapter files
_WEIGHTS = "adapter_model.safetensors"
_HEADS = {"lm_head", "embed_out", "embed_tokens", "wte"}


def check_targets(
    targets: str | Sequence[str], model: str, setting: str = "learner.lora.targets"
) -> None:
    """Raise UsageError when a named layer is not one of the model's; builds it without weights."""
    if isinstance(targets, str):
        return
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    found = _linear_names(empty)
    wrong = sorted(set(targets) - found)
    if wrong:
        raise UsageError(
            f"{setting}: the model {model} has no linear layers called "
            f'{", ".join(map(repr, wrong))}; it has: {", ".join(sorted(found))}. Or "all-linear"'
        )


def _linear_names(model: nn.Module) -> set[str]:
    found = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name.rpartition(".")[2] for name in found} - _HEADS


def attach(model: nn.Module, settings: LoraSettings, source: str) -> None:
    """Put a fresh adapter into the model, in place, and freeze the rest.

    PEFT's own "all-linear" would wrap the fused experts of a mixture and its routers as well, whose
    adapters neither a merged sync nor vLLM understands. Raises UsageError where it does so all the
    same, because dense layers of the model have an expert's name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.targets
    names = sorted(_linear_names(model)) if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
    )
    inject_adapter_in_model(config, model)
    if config.target_parameters:
        raise UsageError(
            "learner.lora.targets: adapters on the experts of a mixture are not supported, and "
            f"{', '.join(sorted(config.target_parameters))} would get some here, because dense "
            "layers go by the same names: name others, such as "
            '["q_proj", "k_proj", "v_proj", "o_proj"]'
        )


def keep_adapter(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook on ``state_dict``: what is frozen is in the model's own folder already.

    DeepSpeed can leave frozen weights out itself, but not a tied one's second name.
    """
    for name in [name for name in state if not is_part(name)]:
        del state[name]


def attached(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapter."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    # PEFT's own switch also turns requires_grad off and on, which DeepSpeed must not see change.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


# names and tensors


def is_part(name: str) -> bool:
    """Whether a parameter of the wrapped model belongs to the adapter."""
    return ".lora_" in name


def base_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[nn.Parameter]]]:
    """Hugging Face name, weight and [A, B] of its adapter ([] without), of all but the adapter."""
    parts = dict(model.named_parameters())
    for name, parameter in parts.items():
        if is_part(name):
            continue
        layer, _, kind = name.partition(".base_layer.")
        pair = [f"{layer}.lora_{side}.{_NAME}.weight" for side in "AB"]
        adapted = kind == "weight" and pair[0] in parts
        yield name.replace(".base_layer.", "."), parameter, [parts[p] for p in pair if adapted]


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name in an adapter file, and parameter."""
    for name, parameter in model.named_parameters():
        if is_part(name):
            yield _PREFIX + name.replace(f".{_NAME}.", "."), parameter


def merged(weight: Tensor, pair: Sequence[Tensor], scaling: float) -> Tensor:
    """W + scaling B A, in the weight's precision and rounded once."""
    if not pair:
        return weight
    a, b = (part.detach().float() for part in pair)
    return (weight.detach().float() + scaling * (b @ a)).to(weight.dtype)


def scaling_of(settings: LoraSettings) -> float:
    return settings.alpha / settings.rank


# folders


def write_adapter(folder: Path, model: Any, tensors: Mapping[str, Tensor]) -> None:
    """A folder that ``peft.PeftModel.from_pretrained`` and vLLM load; atomic."""
    aside = folder.with_name(folder.name + ".partial")
    for old in (aside, folder):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(parents=True)
    model.peft_config[_NAME].save_pretrained(aside)
    # Written here: the library's own writing leaves a file that only its owner may read.
    (aside / _WEIGHTS).write_bytes(save({name: t.contiguous() for name, t in tensors.items()}))
    os.replace(aside, folder)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Make the model compute with the adapter in ``folder``, which may be a newer one.

    Raises RunError when the folder does not have exactly the adapter's tensors.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if not attached(model):
        inject_adapter_in_model(LoraConfig.from_pretrained(folder), model)
    found, own = load_file(folder / _WEIGHTS), dict(adapter_weights(model))
    if found.keys() != own.keys():
        odd = sorted(found.keys() ^ own.keys())
        raise RunError(f"adapter and model differ in {len(odd)} tensors, the first: {odd[:3]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
