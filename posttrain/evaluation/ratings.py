"""Ratings of models from votes on their answers: Bradley-Terry with intervals, and online Elo.

Bradley and Terry (1952): model i beats j with probability sigmoid(theta_i - theta_j). The ratings
are the thetas of greatest likelihood over all votes at once, whatever their order, on the scale of
Elo: rating = 1000 + 400 / ln 10 (theta - mean theta), so that 400 points are odds of ten to one.
A tie counts as half a win and half a loss (Davidson's model, 1970, would give it a parameter).

There is a maximum if and only if no set of models is unbeaten by the rest (Ford 1957): a model
that never lost has no highest likely rating. Such votes are refused by name, unless ``prior`` is
above 0: then every model also has ``prior`` ties with one imagined opponent, which pulls all
ratings together and bounds them.

Intervals are percentiles over a Bayesian bootstrap (Rubin 1981): every question's votes get a
weight drawn from Exp(1). All weights are above 0, so what could be rated still can be; the usual
bootstrap would leave out a model's only loss in a third of its draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import UsageError
from posttrain.evaluation.logistic import Array, fit
from posttrain.evaluation.votes import Ballot

SCALE = 400 / math.log(10)
MIDDLE = 1000.0
K_FACTOR = 4.0  # points that one vote moves at most, in online Elo
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Rating:
    """One model; ``low`` and ``high`` bound the central 95 %."""

    model: str
    rating: float
    low: float
    high: float
    elo: float  # online, in the order of the votes
    wins: int
    losses: int
    ties: int


def rank(
    votes: Sequence[Ballot], *, prior: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> list[Rating]:
    """Every model, best first. Raises UsageError for votes that do not bound the ratings."""
    counted = _Counted.of(votes)
    names = counted.names
    if prior <= 0:
        _check_bounded(names, votes)
    thetas = counted.thetas(np.ones(counted.questions), prior)
    rng = np.random.default_rng(seed)
    drawn = [counted.thetas(rng.exponential(size=counted.questions), prior) for _ in range(draws)]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    elo = online_elo(votes)
    found = [
        Rating(name, _points(thetas[i]), _points(low[i]), _points(high[i]), elo[name], *record)
        for i, (name, record) in enumerate((name, _record(name, votes)) for name in names)
    ]
    return sorted(found, key=lambda one: -one.rating)


def bradley_terry(votes: Sequence[Ballot], *, prior: float = 0.0) -> dict[str, float]:
    """The thetas alone, in nats with mean 0. Raises UsageError as ``rank`` does."""
    counted = _Counted.of(votes)
    if prior <= 0:
        _check_bounded(counted.names, votes)
    thetas = counted.thetas(np.ones(counted.questions), prior)
    return dict(zip(counted.names, thetas.tolist(), strict=True))


def online_elo(votes: Sequence[Ballot], *, k: float = K_FACTOR) -> dict[str, float]:
    """Elo's ratings after the last vote, all from 1000 on; they depend on the order of the votes.

    R_a <- R_a + k (y - E), R_b <- R_b - k (y - E), E = 1 / (1 + 10^((R_b - R_a) / 400)), with y
    what a took of the vote (Elo 1978).
    """
    ratings: dict[str, float] = {}
    for vote in votes:
        a, b = ratings.get(vote.a, MIDDLE), ratings.get(vote.b, MIDDLE)
        moved = k * (vote.taken - 1 / (1 + 10 ** ((b - a) / 400)))
        ratings[vote.a], ratings[vote.b] = a + moved, b - moved
    return ratings


@dataclass(frozen=True, slots=True)
class _Counted:
    """Votes by kind (a, b, winner), so that a fit costs what the kinds are, not the votes."""

    names: list[str]  # [M]
    design: Array  # [kinds, M]: 1 for a, -1 for b
    taken: Array  # [kinds]
    kind: NDArray[np.int64]  # [votes]
    question: NDArray[np.int64]  # [votes]
    questions: int

    @classmethod
    def of(cls, votes: Sequence[Ballot]) -> _Counted:
        names = sorted({name for vote in votes for name in (vote.a, vote.b)})
        place = {name: i for i, name in enumerate(names)}
        kinds: dict[tuple[str, str, float], int] = {}
        asked: dict[object, int] = {}
        kind, question = [], []
        for number, vote in enumerate(votes):
            kind.append(kinds.setdefault((vote.a, vote.b, vote.taken), len(kinds)))
            on = (number,) if vote.task is None else vote.task
            question.append(asked.setdefault(on, len(asked)))
        design = np.zeros((len(kinds), len(names)))
        for row, (a, b, _) in enumerate(kinds):
            design[row, place[a]], design[row, place[b]] = 1.0, -1.0
        taken = np.array([one for *_, one in kinds])
        return cls(names, design, taken, np.array(kind), np.array(question), len(asked))

    def thetas(self, weights: Array, prior: float) -> Array:
        """[M] with mean 0, where each question counts as ``weights`` [questions] say."""
        counts = np.bincount(self.kind, weights[self.question], len(self.taken))
        models = len(self.names)
        pull = np.full(models if prior > 0 else 0, prior)  # ties with one imagined opponent
        thetas = fit(
            np.vstack([self.design, np.eye(models)[: len(pull)]]),
            np.append(self.taken, np.full(len(pull), 0.5)),
            np.append(counts, pull),
        )
        return thetas - thetas.mean()


def _check_bounded(names: Sequence[str], votes: Sequence[Ballot]) -> None:
    """Raises UsageError when some models never lost a vote, not even half, to the others."""
    place = {name: i for i, name in enumerate(names)}
    above = np.eye(len(names), dtype=bool)  # [i, j]: i took something of a vote against j
    for vote in votes:
        a, b = place[vote.a], place[vote.b]
        above[a, b] |= vote.taken > 0
        above[b, a] |= vote.taken < 1
    for _ in range(len(names).bit_length()):  # ... directly, then over one model in between, three
        above = (above.astype(np.float64) @ above) > 0
    # Whoever is above one that is above the most others is one of its equals.
    top = above[:, above.sum(1).argmax()]
    best = [name for name in names if top[place[name]]]
    rest = [name for name in names if not top[place[name]]]
    if not rest:
        return
    met = any(top[place[vote.a]] != top[place[vote.b]] for vote in votes)
    raise UsageError(
        f"the votes do not bound the ratings: of {_listed(best)} none ever "
        f"{'lost to' if met else 'met'} any of {_listed(rest)}. Cast more votes, leave these "
        "models out, or bound the ratings with --prior 1 (one imagined tie of each)"
    )


def _points(theta: float) -> float:
    return MIDDLE + SCALE * float(theta)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _record(name: str, votes: Sequence[Ballot]) -> tuple[int, int, int]:
    """Wins, losses, ties."""
    took = [v.taken if v.a == name else 1 - v.taken for v in votes if name in (v.a, v.b)]
    return took.count(1.0), took.count(0.0), took.count(0.5)
