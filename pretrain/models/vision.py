"""Decides how a language model sees: LLaVA-NeXT's tiles, a SigLIP tower, a two-layer projector.

A picture is shown whole in one tile, and again over the grid of tiles that fits its shape best (Liu
et al., LLaVA-NeXT, 2024). Each patch of a tile becomes one token: the tower's last hidden state
through linear, GELU, linear. Padding is cut off and every row of patches ends in a learnt vector.

Pictures are resized by PIL and numpy alone: transformers' default goes through torchvision, which
may be absent. The processor that is saved is read by ``AutoProcessor`` either way.

Training has two stages (Liu et al., arXiv:2304.08485, section 4.2): first the projector alone
learns to speak the language model's language, then projector and language model together, and the
tower with them where that is wanted. ``pretrain/vision`` is that training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError
from pretrain.models.shape import Shape, VisionShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IMAGE = "<image>"
# The parts that each stage trains, by the start of their parameters' names.
_PROJECTOR = ("model.multi_modal_projector.", "model.image_newline")
STAGES = {1: _PROJECTOR, 2: (*_PROJECTOR, "model.language_model.", "lm_head.")}
TOWER = "model.vision_tower."


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer, in which ``<image>`` is one special token."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False
    )
    return tokenizer


def vision_language_config(
    shape: Shape, language: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    """Raises UsageError where the tokenizer lacks ``<image>``."""
    from transformers import LlavaNextConfig, SiglipVisionConfig

    vision = _vision_of(shape)
    tower = SiglipVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.ffn,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_use_head=False,  # the pooling that CLIP-like training needs, and nobody reads here
    )
    return LlavaNextConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=_image_token(shape, tokenizer),
        image_seq_length=vision.patches,
        image_grid_pinpoints=_resolutions(vision),
        vision_feature_select_strategy="full",  # SigLIP has no class token to take away
        vision_feature_layer=-1,
        tie_word_embeddings=shape.tied,
    )


def processor(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Text with ``<image>`` and PIL pictures to ids, pixels and sizes: a ``LlavaNextProcessor``."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    vision = _vision_of(shape)
    _image_token(shape, tokenizer)
    side = {"height": vision.image_size, "width": vision.image_size}
    images = LlavaNextImageProcessorPil(
        size=side,
        crop_size=side,
        image_grid_pinpoints=_resolutions(vision),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
    )


def set_stage(model: PreTrainedModel, stage: int, *, tower: bool = False) -> None:
    """Freeze all but what ``stage`` (1 or 2) trains, and the ``tower`` where it is wanted."""
    if stage not in STAGES:
        raise UsageError(f"no stage {stage}: 1 trains the projector, 2 the language model with it")
    trained = (*STAGES[stage], TOWER) if tower else STAGES[stage]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def take_language_model(model: PreTrainedModel, language: PreTrainedModel) -> None:
    """Put a trained language model into a model that sees, in place.

    Its rows of the vocabulary come first, and new ones (``<image>``) keep what they had. Raises
    UsageError where a shape differs otherwise.
    """
    import torch

    ours = dict(model.model.language_model.state_dict(), **{"lm_head": model.lm_head.weight})
    theirs = dict(language.model.state_dict(), **{"lm_head": language.lm_head.weight})
    for name, target in ours.items():
        source = theirs.get(name)
        if source is None or source.shape[1:] != target.shape[1:] or len(source) > len(target):
            got = "nothing" if source is None else tuple(source.shape)
            raise UsageError(f"{name}: {tuple(target.shape)} here, {got} in the language model")
        if len(source) != len(target) and name not in ("embed_tokens.weight", "lm_head"):
            raise UsageError(f"{name}: {len(target)} rows here, {len(source)} there")
        with torch.no_grad():
            target[: len(source)].copy_(source)


def _vision_of(shape: Shape) -> VisionShape:
    if shape.vision is None:
        raise UsageError(f"{shape.architecture} has no vision tower: choose llava")
    return shape.vision


def _resolutions(vision: VisionShape) -> list[list[int]]:
    """Height and width in pixels of every grid."""
    return [[high * vision.image_size, wide * vision.image_size] for high, wide in vision.grids]


def _image_token(shape: Shape, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Its id; without a tokenizer the last row of the vocabulary."""
    if tokenizer is None:
        return shape.vocab_size - 1
    found = tokenizer.convert_tokens_to_ids(IMAGE)
    if found is None or found == tokenizer.unk_token_id:
        raise UsageError(f"the tokenizer has no {IMAGE} token: see add_image_token")
    return int(found)
