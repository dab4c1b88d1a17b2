"""Decides how a config is written for a longer window. The weights stay as they are.

With s = new length / length of pretraining, base b, head size d, dimension pair i of frequency
b^(-2i/d):

    abf     the base becomes b' = b s^(d/(d-2)): the slowest pair turns as far over the new length
            as it did over the old, the fastest stays ("NTK-aware"). Larger bases given by hand are
            what Xiong et al. train on with (arXiv:2309.16039: 10,000 to 500,000)
    linear  position interpolation: every frequency divided by s (Chen et al., arXiv:2306.15595)
    yarn    pairs that turn more than 32 times over the old length stay, those that turn less than
            once are divided by s, a ramp between; attention sharpened by 0.1 ln s + 1 (Peng et al.,
            arXiv:2309.00071)

Where the engines disagree about a field, the one form is written that both read alike:

    - ``max_position_embeddings`` is the new length, except for linear, where vLLM multiplies it by
      the factor and transformers does not look: there it stays the length of pretraining
    - factors are floats: vLLM takes an integer for a list
    - yarn carries ``original_max_position_embeddings``, and a second extension counts from it

Models with several kinds of layers (a dict of parameters for each) get the change in their layers
with full attention; a sliding window sees no further than before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

METHODS = ("yarn", "abf", "linear")
_FULL = "full_attention"


def window(config: PretrainedConfig) -> int:
    """The longest sequence that a model is for, in tokens."""
    text = config.get_text_config()
    rope = _rope(text)
    scaled = rope.get("rope_type") in ("linear", "dynamic")
    return int(text.max_position_embeddings * (rope.get("factor") or 1.0 if scaled else 1.0))


def extend_config(
    config: PretrainedConfig, length: int, *, method: str = "yarn", base: float | None = None
) -> None:
    """Change ``config`` in place for sequences of ``length`` tokens.

    ``base`` overrides abf's formula. Raises UsageError for a length that is no longer than the
    window, a model without rotary positions, or one that is scaled in another way already.
    """
    if method not in METHODS:
        raise UsageError(f"no method {method!r}: there are {', '.join(METHODS)}")
    if base is not None and method != "abf":
        raise UsageError(f"--base belongs to abf, not to {method}")
    text = config.get_text_config()
    rope = _rope(text)
    if not rope.get("rope_theta"):
        raise UsageError(f"{text.model_type} has no rotary positions to rescale")
    now = window(config)
    if length <= now:
        raise UsageError(f"the window is {now:,} tokens already: --length must be longer")
    kind = rope.get("rope_type", "default")
    if kind != "default" and kind != method:
        raise UsageError(
            f"this model is scaled by {kind} already, which {method} does not go with: start from "
            "the checkpoint of before" + (f", or use {kind} again" if kind in METHODS else "")
        )
    original = int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
    factor = length / original
    match method:
        case "abf":
            rope["rope_theta"] = _new_base(text, rope, factor, base)
        case "linear":
            rope |= {"rope_type": "linear", "factor": factor}
        case "yarn":
            rope |= {"rope_type": "yarn", "factor": factor}
            rope["original_max_position_embeddings"] = original
    _set_rope(text, rope)
    if method != "linear":
        text.max_position_embeddings = length


def _rope(text: PretrainedConfig) -> dict[str, Any]:
    """A copy of the parameters of the layers that see everything."""
    rope = getattr(text, "rope_parameters", None) or {}
    return dict(rope.get(_FULL) or {}) if _FULL in rope else dict(rope)


def _set_rope(text: PretrainedConfig, rope: dict[str, Any]) -> None:
    nested = _FULL in text.rope_parameters
    text.rope_parameters = text.rope_parameters | {_FULL: rope} if nested else rope


def _new_base(
    text: PretrainedConfig, rope: dict[str, Any], factor: float, base: float | None
) -> float:
    old = float(rope["rope_theta"])
    if base is None:
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        turning = head * rope.get("partial_rotary_factor", 1.0)
        return float(old * factor ** (turning / (turning - 2)))
    if base <= old:
        raise UsageError(f"the base is {old:g} now: --base must be larger")
    return float(base)
