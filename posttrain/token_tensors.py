"""What a loss and a correction see of one row: the tokens the model wrote, and their sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTensors:
    """Everything a loss may look at: the written tokens of one row, all [N] unless said.

    ``policy_loss`` puts 0 wherever the mask is False, so a loss need not care what stood there.
    """

    logprobs: Tensor  # the learner's, with gradient
    old_logprobs: Tensor  # the engine's, when it sampled the token
    advantages: Tensor
    mask: Tensor  # bool; False: filling
    sequence: Tensor  # int64, number of the token's sequence in its row, < n_sequences
    n_sequences: int  # S
    prox_logprobs: Tensor | None = None  # the learner's when the step began; None: as logprobs
    entropy: Tensor | None = None  # of the learner's distribution
    ref_logprobs: Tensor | None = None  # the frozen reference's
    decoupled: bool = False  # a correction answers for the engine; see the module

    @property
    def base_logprobs(self) -> Tensor:
        """What the loss's ratio is taken against."""
        return self.start_logprobs if self.decoupled else self.old_logprobs

    @property
    def start_logprobs(self) -> Tensor:
        """The learner's when the step began, without gradient."""
        return self.logprobs.detach() if self.prox_logprobs is None else self.prox_logprobs

    def masked(self, values: Tensor) -> Tensor:
        """``values`` with 0 outside the mask: what stands there cannot leak, NaN included."""
        return torch.where(self.mask, values, torch.zeros_like(values))

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum over the loss tokens of each sequence, [S]."""
        zeros = values.new_zeros(self.n_sequences)
        return zeros.index_add(0, self.sequence, self.masked(values))

    def spread(self, values_S: Tensor) -> Tensor:
        """To each token its sequence's value."""
        return values_S[self.sequence]

    def lengths(self) -> Tensor:
        """Loss tokens of each sequence, [S]."""
        return self.per_sequence(torch.ones_like(self.old_logprobs))

    def cleaned(self) -> TokenTensors:
        """The same with 0 outside the mask, in every tensor of floats."""

        def clean(values: Tensor | None) -> Tensor | None:
            return None if values is None else self.masked(values)

        return replace(
            self,
            logprobs=self.masked(self.logprobs),
            old_logprobs=self.masked(self.old_logprobs),
            advantages=self.masked(self.advantages),
            prox_logprobs=clean(self.prox_logprobs),
            entropy=clean(self.entropy),
            ref_logprobs=clean(self.ref_logprobs),
        )
