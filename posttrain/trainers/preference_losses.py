"""The preference losses by name: TRL's settings for those it has, pure functions for the others.

    h = log pi(y|x) - log pi_ref(y|x) of a whole answer, w the chosen and l the rejected one; |y|
    tokens of an answer, p = exp(log pi(y|x) / |y|) the geometric mean of its tokens' probabilities

docs/preferences.md has every formula with its paper, and when it fails. SimPO, ORPO and CPO are
without reference. Left out: losses that need more than a pair or a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLoss = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """How a loss is trained: by TRL with ``trl``'s settings, or by ``function`` of log-probs."""

    paper: str
    beta: float  # the paper's usual value
    trl: Mapping[str, Any] = field(default_factory=dict)
    function: PairLoss | None = None  # (chosen_B, rejected_B, lengths..., **own) -> [B]
    own: tuple[str, ...] = ()  # further settings it takes

    @property
    def reference(self) -> bool:
        """Whether it needs the log-probs of a reference."""
        return self.function is None


def simpo(
    chosen_B: Tensor, rejected_B: Tensor, lengths_2_B: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """-log sigmoid(beta (log pi(w)/|w| - log pi(l)/|l|) - gamma). SimPO, eq. 6."""
    chosen, rejected = chosen_B / lengths_2_B[0], rejected_B / lengths_2_B[1]
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(chosen_B: Tensor, rejected_B: Tensor, lengths_2_B: Tensor, *, beta: float) -> Tensor:
    """-log p_w - beta log sigmoid(log odds(p_w) - log odds(p_l)), odds(p) = p / (1 - p).

    ORPO, arXiv:2403.07691, eq. 6 and 7; ``beta`` is its lambda. The first term is the likelihood
    of the chosen answer by token, of each pair alike.
    """
    chosen, rejected = chosen_B / lengths_2_B[0], rejected_B / lengths_2_B[1]
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * logsigmoid(log_odds)


def cpo(
    chosen_B: Tensor, rejected_B: Tensor, lengths_2_B: Tensor, *, beta: float, alpha: float
) -> Tensor:
    """-log sigmoid(beta (log pi(w) - log pi(l))) - alpha log pi(w)/|w|. CPO, eq. 3.

    The paper's likelihood term is a sum over the tokens with alpha = 1; its code, as this, takes
    the mean.
    """
    preference = -logsigmoid(beta * (chosen_B - rejected_B))
    return preference - alpha * chosen_B / lengths_2_B[0]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012); x = 0 is moved to -1e-7."""
    x = x.clamp(max=-1e-7)
    near = x > -0.6931472
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


LOSSES: dict[str, Loss] = {
    "dpo": Loss("arXiv:2305.18290, eq. 7", 0.1, {"loss_type": ["sigmoid"]}),
    "dpo_norm": Loss("arXiv:2411.15124, section 5", 5.0, {"loss_type": ["sigmoid_norm"]}),
    "robust": Loss("arXiv:2403.00409", 0.1, {"loss_type": ["robust"]}, own=("label_smoothing",)),
    "ipo": Loss("arXiv:2310.12036, eq. 17", 0.1, {"loss_type": ["ipo"]}),
    "apo_zero": Loss("arXiv:2408.06266, eq. 7", 0.1, {"loss_type": ["apo_zero"]}),
    "apo_down": Loss("arXiv:2408.06266, eq. 8", 0.1, {"loss_type": ["apo_down"]}),
    "kto": Loss(
        "arXiv:2402.01306, eq. 7", 0.1, {"loss_type": "kto"}, own=("good_weight", "bad_weight")
    ),
    "simpo": Loss("arXiv:2405.14734, eq. 6", 2.0, function=simpo, own=("gamma",)),
    "orpo": Loss("arXiv:2403.07691, eq. 6", 0.1, function=orpo),
    "cpo": Loss("arXiv:2401.08417, eq. 3", 0.1, function=cpo, own=("alpha",)),
}
