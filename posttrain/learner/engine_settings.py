"""What DeepSpeed is told, and what that means for precision and memory, in words.

Decides what ``learner.memory_savings`` does. "checkpointing" keeps each layer's input alone and
computes the layer a second time in the backward pass. "offload" keeps master weights, moments and
the gradient they are updated with in the host's memory (ZeRO-Offload, arXiv:2101.06840), and the
update is made there, by torch's own fused AdamW for CPUs: DeepSpeed's would have to be compiled at
its first start, and can't be told to let a step pass. On a machine without a GPU it runs the same
way, and saves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config import LearnerSettings
from posttrain.learner.memory import BUCKET


def deepspeed_config(settings: LearnerSettings, *, cuda: bool, trained: int) -> dict[str, Any]:
    """The dictionary for ``deepspeed.initialize`` of a model with ``trained`` such parameters.

    ZeRO-2 and 3 set aside a whole bucket at the start, however small the model.
    """
    low = settings.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": settings.stage, "reduce_bucket_size": min(BUCKET, trained)}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm if settings.stage else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": low, "check_grad_overflow": low},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
    }


def choices(
    settings: LearnerSettings, *, attention: str, tile_tokens: int, device: str
) -> dict[str, Any]:
    """What was chosen, by settings or for the user; kept in the run's record."""
    low, lora = settings.dtype == "bfloat16", settings.lora
    return {
        "device": device,
        "weights": "NF4, restored in " + settings.dtype if lora and lora.bits else settings.dtype,
        "trained": "adapter" if lora else "all weights",
        "master_weights": "float32" if low else "the weights themselves",
        "moments": "float32",
        "gradient_accumulation": "float32",
        "ranks": settings.world_size,
        "sequence_parallel": settings.sequence_parallel,
        "zero_stage": settings.stage,
        "zero_stage_asked": settings.zero_stage,
        "optimiser_on": "host" if settings.offload else "device",
        "checkpointing": settings.checkpointing,
        "attention": attention,
        "logit_tile_tokens": tile_tokens,
        "tokens_per_row": settings.tokens_per_row,
    }


def choices_text(chosen: Mapping[str, Any]) -> str:
    """Two lines for a person."""
    stage, asked = chosen["zero_stage"], chosen["zero_stage_asked"]
    raised = f" (asked for {asked}; bfloat16 needs 1)" if stage != asked else ""
    shared = chosen["sequence_parallel"]
    ranks = f"{chosen['ranks']} rank(s) on {chosen['device']}"
    ranks += f", {shared} share each row" if shared > 1 else ""
    host = ", optimiser on the host" if chosen["optimiser_on"] == "host" else ""
    if host and chosen["device"] == "cpu":
        host += ", which saves nothing on a CPU"
    again = "layers computed twice" if chosen["checkpointing"] else "activations kept"
    return (
        f"learner: {chosen['trained']} trained, weights {chosen['weights']}; master weights "
        f"{chosen['master_weights']}, moments and gradient sums in float32; ZeRO-{stage}{raised}"
        f"{host}\n"
        f"learner: {ranks}; attention {chosen['attention']}; {again}; "
        f"{chosen['tokens_per_row']:,} tokens a row, logits of {chosen['logit_tile_tokens']} "
        "tokens at once"
    )
