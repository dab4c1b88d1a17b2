"""Decides what the sizes of a model are, and which of them do not go together.

Every head size is a multiple of 32, which vLLM's attention on CPU asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.errors import UsageError

ARCHITECTURES = ("qwen3", "llama", "qwen3_moe", "mixtral", "llava")
MOE = ("qwen3_moe", "mixtral")


@dataclass(frozen=True, slots=True)
class VisionShape:
    """A SigLIP tower and how a picture is cut up for it."""

    width: int
    layers: int
    heads: int
    ffn: int
    image_size: int = 224  # pixels; the side of a tile
    patch_size: int = 14  # pixels; each patch is one token
    # Tiles high and wide that a picture may be spread over, beside one view of the whole.
    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UsageError(f"vision width {self.width} is no multiple of its {self.heads} heads")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise UsageError(
                f"a tile of {self.image_size} pixels does not divide into patches of "
                f"{self.patch_size}: choose a multiple"
            )
        if not self.grids or any(min(grid) < 1 or max(grid) < 2 for grid in self.grids):
            raise UsageError("a grid of tiles has at least two, such as (1, 2)")

    @property
    def patches(self) -> int:
        """Tokens of one tile."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Every size of a model. Made by ``shape_for``, or by hand."""

    architecture: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    max_length: int = 2048
    tied: bool = True
    experts: int = 0  # per layer; 0 is a dense model
    experts_per_token: int = 0
    expert_ffn: int = 0
    balance_weight: float = 0.01  # of the load-balancing loss
    vision: VisionShape | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UsageError(
                f"no architecture {self.architecture!r}: there are {', '.join(ARCHITECTURES)}"
            )
        sizes = (self.vocab_size, self.width, self.layers, self.heads, self.kv_heads, self.ffn)
        if min(*sizes, self.max_length) < 1:
            raise UsageError("every size of a model must be at least 1")
        if self.heads % self.kv_heads:
            raise UsageError(f"{self.heads} heads are no multiple of {self.kv_heads} kv heads")
        if self.head_dim < 32 or self.head_dim % 32:
            raise UsageError(f"the head size must be a multiple of 32, not {self.head_dim}")
        if (self.architecture in MOE) != bool(self.experts):
            raise UsageError(f"{self.architecture} with {self.experts} experts is no such model")
        if self.experts and not (
            0 < self.experts_per_token <= self.experts and self.expert_ffn > 0
        ):
            raise UsageError(
                f"{self.experts_per_token} of {self.experts} experts of size {self.expert_ffn}: "
                "choose 1 to all of them per token"
            )
        if (self.architecture == "llava") != (self.vision is not None):
            raise UsageError("llava has a vision tower, and no other architecture has one")
