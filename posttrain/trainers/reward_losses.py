"""What a reward model is trained on: the probability that one answer beats the other, or neither.

With d the difference of the two scores, chosen minus rejected, and m the pair's margin:

    Bradley-Terry    P(win) = sigmoid(d - m)
    Rao-Kupper       P(win) = sigmoid(d - m - eta)
                     P(tie) = (exp(2 eta) - 1) sigmoid(d - eta) sigmoid(-d - eta)

(Bradley & Terry 1952; as a loss Ouyang et al., arXiv:2203.02155, eq. 1; with a margin Llama 2,
arXiv:2307.09288, eq. 2; Rao & Kupper 1967, whose theta is e^eta.)

The three probabilities of Rao-Kupper (win, loss, tie; m = 0) add up to 1. eta > 0 is the difference
from which a preference is felt; it fixes the scale and is a setting, not learnt: a learnt one would
have to be kept with the model, which is only a score. Without ties in the data eta is 0.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus


def win_loss(d_B: Tensor, margin_B: Tensor | float = 0.0, eta: float = 0.0) -> Tensor:
    """-log P(win), [B]."""
    return softplus(margin_B + eta - d_B)


def tie_loss(d_B: Tensor, eta: float) -> Tensor:
    """-log P(tie), [B]. Raises ValueError unless eta > 0."""
    if eta <= 0:
        raise ValueError(f"ties need a threshold above 0, not {eta}")
    return softplus(eta - d_B) + softplus(eta + d_B) - math.log(math.expm1(2 * eta))
