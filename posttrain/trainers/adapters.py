"""Adapters of the trainers: what PEFT and bitsandbytes are told, and how the result is merged.

With ``bits`` the frozen base is held in NF4 (QLoRA, arXiv:2305.14314). The result is merged into
the base as it was, not into the rounded one. What is trained is float32, also where TRL would round
it.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UsageError
from posttrain.trainers.settings import AdapterSettings

if TYPE_CHECKING:
    from transformers import Trainer


def check_adapter(settings: AdapterSettings | None, model: str) -> None:
    """Raise UsageError for targets that the model does not have, or without bitsandbytes."""
    from posttrain.model.lora import check_targets

    if settings is None:
        return
    check_targets(settings.targets, model, "lora.targets")
    if settings.bits and find_spec("bitsandbytes") is None:
        raise UsageError("lora.bits needs bitsandbytes: pip install 'posttrain[qlora]'")


def check_base(adapter: str | Path, model: str | Path) -> None:
    """Raise UsageError unless ``adapter`` is a folder of PEFT's that was trained on ``model``."""
    config = Path(adapter) / "adapter_config.json"
    try:
        base = str(json.loads(config.read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{adapter} is not an adapter: its adapter_config.json: {error}"
        ) from error
    if base != str(model) and Path(base).resolve() != Path(model).resolve():
        raise UsageError(f"the adapter {adapter} was trained on {base}, not on {model}")


def adapter_config(settings: AdapterSettings | None, task: str) -> Any:
    """PEFT's configuration; ``task`` is CAUSAL_LM, SEQ_CLS or TOKEN_CLS. None without adapters."""
    if settings is None:
        return None
    from peft import LoraConfig

    targets = settings.targets
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        task_type=task,
    )


def quantisation(settings: AdapterSettings | None, *whole: str) -> Any:
    """How transformers loads the frozen base, ``whole`` layers apart; None for as it is."""
    if settings is None or not settings.bits:
        return None
    import torch

    from posttrain.model.quantised import nf4

    return nf4(torch.bfloat16, list(whole) or None)


def settle_quantised(trainer: Trainer, start: str = "") -> None:
    """Keep a quantised base in its one format, and what is trained over it in float32.

    TRL rounds adapters there to bfloat16, in which Adam's small steps vanish. ``start`` is the
    folder of the adapter that is gone on with: its weights are read again, for
    a reference that is a copy of it as well. To be called before the first pass.
    """
    from posttrain.model.quantised import keep_one_format

    model: Any = trainer.model
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    keep_one_format(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or ".lora_" in name:  # a reference's adapter is frozen
            parameter.data = parameter.data.float()
    if start:
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(start, device="cpu")
        for name in model.peft_config:
            set_peft_model_state_dict(model, dict(weights), adapter_name=name)


def save_model(trainer: Trainer, tokenizer: Any, folder: Path, base: str) -> None:
    """An ordinary checkpoint; of adapters the merged model, and the adapter in ``adapter/``."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        quantised = getattr(model, "is_loaded_in_4bit", False)
        model = (_on_whole_base(model, folder, base) if quantised else model).merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _on_whole_base(model: Any, folder: Path, base: str) -> Any:
    """The saved adapter on the base as it was before it was quantised."""
    import torch
    from peft import PeftModel

    quantised = model.get_base_model()
    config = copy.deepcopy(quantised.config)
    del config.quantization_config
    whole = type(quantised).from_pretrained(base, config=config, dtype=torch.float32)
    return PeftModel.from_pretrained(whole, str(folder / "adapter"))
