"""The model that is fine-tuned: how it is loaded, what of it is trained, how it is saved.

The result is an ordinary checkpoint. Of an adapter, the merged model, with the adapter in
``adapter/``; it is merged into the base as it was, not into a quantised one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UsageError
from posttrain.trainers.adapters import adapter_config, check_adapter, check_base, quantisation
from posttrain.trainers.settings import main_rank
from posttrain.trainers.sft_settings import SftAdapterSettings, SftSettings
from posttrain.trainers.vocabulary import Starts, add_embeddings

if TYPE_CHECKING:
    from trl import SFTTrainer


def check_lora(lora: SftAdapterSettings | None, model: str, starts: Starts) -> None:
    """Raise UsageError for an adapter that does not fit the model, before it is loaded."""
    if lora is None:
        return
    check_adapter(lora, model)
    if not lora.start:
        return
    check_base(lora.start, model)
    config = json.loads((Path(lora.start) / "adapter_config.json").read_text())
    for name, key in (("rank", "r"), ("alpha", "lora_alpha")):
        if name in lora.model_fields_set and getattr(lora, name) != config.get(key):
            raise UsageError(
                f"lora.{name} = {getattr(lora, name)}, but the adapter {lora.start} has "
                f"{config.get(key)}: leave it out, an adapter keeps its shape"
            )
    if starts:
        raise UsageError("new_tokens and lora.start: an adapter has no room for new tokens")


def load_model(
    model: str, settings: SftSettings, starts: Starts, *, bf16: bool, attention: str | None
) -> Any:
    """For training. Weights that are trained are float32: small steps vanish in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    frozen = settings.lora is not None and not starts
    options: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 and frozen else torch.float32}
    if quantised := quantisation(settings.lora):
        options["quantization_config"] = quantised
    if attention:
        options["attn_implementation"] = attention
    loaded = AutoModelForCausalLM.from_pretrained(model, **options)
    add_embeddings(loaded, starts)
    if settings.lora and settings.lora.start:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, settings.lora.start, is_trainable=True)
    return loaded


def new_adapter(settings: SftSettings, model: Any, starts: Starts) -> Any:
    """PEFT's configuration of an adapter to begin with; None for none, or one that goes on."""
    if settings.lora is None or settings.lora.start:
        return None
    config = adapter_config(settings.lora, "CAUSAL_LM")
    if starts:
        # A frozen embedding would never learn the new rows.
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        names = [n for n, layer in model.named_modules() if any(layer is end for end in ends)]
        config.modules_to_save = [name.rpartition(".")[2] for name in names]
        config.ensure_weight_tying = True
    return config


def save(trainer: SFTTrainer, tokenizer: Any, folder: Path, base: str, starts: Starts) -> None:
    """Write the result into ``folder``; every rank calls this."""
    from peft import PeftModel

    adapted = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    trainer.save_model(str(folder / "adapter" if adapted else folder))
    if main_rank():
        for leaving in folder.rglob("training_args.bin"):
            leaving.unlink()
        if adapted:
            _merge(folder, base, starts)
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _merge(folder: Path, base: str, starts: Starts) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 it would be loaded in parts, one for each rank
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    add_embeddings(model, starts)
    merged = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder)
