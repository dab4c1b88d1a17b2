"""Decides what a shape costs, before anything is built: parameters by part, FLOPs per token.

    forward      2 x (parameters that multiply a token) + 4 x layers x heads x head size x length
    training     3 x forward: the backward pass is two of it

The second term is attention over ``length`` tokens without the saving of a causal mask, the
convention of PaLM's model FLOPs utilisation (Chowdhery et al., arXiv:2204.02311, appendix B). The
input embedding is a look-up and multiplies nothing; the output matrix counts also when it is tied.
Of experts only those count that see the token. A test holds the counts to the built models.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.models.shape import Shape, VisionShape


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers of parameters. ``parts`` add up to ``total``."""

    parts: dict[str, int]
    total: int
    active: int  # what one text token meets: all of a dense model
    flops_forward: float  # per text token, at the shape's full length
    flops_image: float  # forward, per tile of a picture, the tower and the projector

    @property
    def flops_training(self) -> float:
        """Forward and backward, per text token."""
        return 3 * self.flops_forward


def count(shape: Shape) -> Count:
    """Exact for the models of ``build``, gains and biases included."""
    attention = shape.layers * _attention(shape)
    norms = shape.width * (2 * shape.layers + 1)
    ffn, active_ffn, routers = _feed_forward(shape)
    embedding = shape.vocab_size * shape.width
    parts = {
        "embedding": embedding,
        "attention": attention,
        "experts" if shape.experts else "feed-forward": ffn,
        "routers": routers,
        "norms": norms,
        "output": 0 if shape.tied else embedding,
    }
    multiplied = attention + active_ffn + routers + embedding
    active = multiplied + norms + (0 if shape.tied else embedding)
    flops_image = 0.0
    if shape.vision:
        parts["vision tower"] = _tower(shape.vision)
        parts["projector"] = _projector(shape.vision, shape.width)
        flops_image = _flops_image(shape.vision, parts["vision tower"] + parts["projector"])
    mixing = 4 * shape.layers * shape.heads * shape.head_dim * shape.max_length
    parts = {name: number for name, number in parts.items() if number}
    return Count(parts, sum(parts.values()), active, 2.0 * multiplied + mixing, flops_image)


def _attention(shape: Shape) -> int:
    projections = shape.width * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    has_head_norms = shape.architecture in ("qwen3", "qwen3_moe", "llava")
    return projections + (2 * shape.head_dim if has_head_norms else 0)


def _feed_forward(shape: Shape) -> tuple[int, int, int]:
    """All, those that a token meets, the routers."""
    if not shape.experts:
        dense = shape.layers * 3 * shape.width * shape.ffn
        return dense, dense, 0
    one = shape.layers * 3 * shape.width * shape.expert_ffn
    return (
        shape.experts * one,
        shape.experts_per_token * one,
        shape.layers * shape.width * shape.experts,
    )


def _tower(vision: VisionShape) -> int:
    """SigLIP: patches, positions, then layers with biases and two norms of gain and bias."""
    width = vision.width
    patches = 3 * vision.patch_size**2 * width + width + vision.patches * width
    layer = 4 * (width * width + width) + 2 * width * vision.ffn + vision.ffn + width + 4 * width
    return patches + vision.layers * layer + 2 * width


def _projector(vision: VisionShape, width: int) -> int:
    """Two layers with biases, and the vector that ends a row of patches."""
    return vision.width * width + width + width * width + width + width


def _flops_image(vision: VisionShape, parameters: int) -> float:
    mixing = 4 * vision.layers * vision.width * vision.patches
    return vision.patches * (2.0 * parameters + mixing)


def table(shape: Shape) -> str:
    """What will be built, to be read before it is trained."""
    counted = count(shape)
    heads = f"{shape.heads} heads of {shape.head_dim}, {shape.kv_heads} kv"
    lines = [f"{shape.architecture}: {shape.layers} layers of width {shape.width}, {heads}"]
    if shape.experts:
        lines.append(
            f"{shape.experts} experts of {shape.expert_ffn} per layer, "
            f"{shape.experts_per_token} for a token"
        )
    else:
        lines[0] += f", feed-forward {shape.ffn}"
    if shape.vision:
        lines.append(
            f"vision: {shape.vision.layers} layers of width {shape.vision.width}, tiles of "
            f"{shape.vision.image_size} pixels, {shape.vision.patches} tokens each"
        )
    tied = "tied" if shape.tied else "not tied"
    lines += [f"vocabulary {shape.vocab_size:,} ({tied}), length {shape.max_length:,}", ""]
    lines += [_row(name, n, counted.total) for name, n in counted.parts.items()]
    lines.append(_row("total", counted.total, counted.total))
    if shape.experts:
        lines.append(_row("active per token", counted.active, counted.total))
    lines += [
        "",
        f"FLOPs per token  {counted.flops_forward:.3g} forward, "
        f"{counted.flops_training:.3g} training",
    ]
    if shape.vision:
        lines.append(f"FLOPs per tile   {counted.flops_image:.3g} forward")
    return "\n".join(lines)


def _row(name: str, number: int, total: int) -> str:
    return f"{name:<17}{number:>16,}  {number / total:6.1%}"
