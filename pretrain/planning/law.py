"""Decides how loss follows from size and tokens, and what is best for a budget.

    L(N, D) = E + A / N^alpha + B / D^beta        (Hoffmann et al. 2022, equation 10)
    C = 6 N D                                     (Kaplan et al. 2020)

N is all parameters, D the training tokens, C the training's FLOP, L in nats per token. Loss under
C is least at N = G (C/6)^(beta/(alpha+beta)), D = (C/6) / N with
G = (alpha A / (beta B))^(1/(alpha+beta)) (equation 4 there).

The two published fits are of the same runs on the same corpus with the same tokenizer: their losses
are not those of another corpus, only the shape carries over. Besiroglu et al. (2024) fitted the
data again because the first fit contradicts its paper's other two methods: at Chinchilla's own
budget (5.76e23 FLOP) it asks for 93 tokens per parameter, the second for 18.

Left out: repeated data, mixtures of experts, and the cost of attention, which grows with the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.errors import UsageError


@dataclass(frozen=True, slots=True)
class Point:
    """A model and its training. ``flops`` of the training alone."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True, slots=True)
class Law:
    """The five numbers of L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in nats per token."""
        positive(parameters=parameters, tokens=tokens)
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def point(self, parameters: float, tokens: float) -> Point:
        return Point(parameters, tokens, self.loss(parameters, tokens))

    def optimum(self, flops: float) -> Point:
        """The least loss that a training budget can buy."""
        positive(flops=flops)
        both = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = ratio * (flops / 6) ** (self.beta / both)
        return self.point(parameters, flops / 6 / parameters)

    def tokens_for(self, loss: float, parameters: float) -> float:
        """How long a model of this size has to train for this loss; inf when it cannot reach it."""
        left = loss - self.E - self.A / parameters**self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else math.inf

    def optimum_for_size(self, parameters: float) -> Point:
        """The training at which a model of this size is the best use of its budget.

        There alpha A / N^alpha = beta B / D^beta.
        """
        positive(parameters=parameters)
        gain = self.alpha * self.A / parameters**self.alpha
        return self.point(parameters, (self.beta * self.B / gain) ** (1 / self.beta))

    def lifetime(self, loss: float, inference_tokens: float) -> Point:
        """The model of this loss that is cheapest to train and then to run on so many tokens.

        Minimises 6 N D + 2 N D_inference over the (N, D) of equal loss (Sardana et al. 2023,
        equation 2). Prompt and answer tokens count alike, and utilisation is that of training.
        Raises UsageError for a loss that no model reaches.
        """
        from scipy.optimize import minimize_scalar

        if loss <= self.E:
            raise UsageError(f"no model reaches a loss of {loss:g}: the law's floor is {self.E:g}")
        if not 0 <= inference_tokens < math.inf:
            raise UsageError(f"inference tokens must be 0 or more, not {inference_tokens:g}")
        smallest = (self.A / (loss - self.E)) ** (1 / self.alpha)  # would need endless tokens

        def total(log_excess: float) -> float:
            parameters = smallest * (1 + math.exp(log_excess))
            tokens = self.tokens_for(loss, parameters)
            # The logarithm has its minimum where the sum has, and stays finite near the asymptote.
            return math.log(parameters) + math.log(6 * tokens + 2 * inference_tokens)

        best = minimize_scalar(
            total, bounds=(-12.0, 12.0), method="bounded", options={"xatol": 1e-9}
        )
        parameters = smallest * (1 + math.exp(float(best.x)))
        return Point(parameters, self.tokens_for(loss, parameters), loss)


LAWS = {
    # Approach 3, as rounded in the text of the paper (its TeX source: 1.6934, 0.3392, 0.2849).
    "hoffmann": Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "besiroglu": Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
}


def positive(**numbers: float) -> None:
    """Raises UsageError that names the number which is not finite and above 0."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name.replace('_', ' ')} must be finite and above 0, not {value:g}")
