"""Decides what many comparisons of K answers add up to: one value in [0, 1] per answer.

A comparison says how much of a point i takes from j: 1, 0, or 1/2 for a tie.

    copeland        value_i = points of i / (K - 1)
    bradley_terry   P(i beats j) = s_i / (s_i + s_j), s by maximum likelihood, and
                    value_i = mean over j of P(i beats j)

Bradley and Terry 1952, fitted by Hunter's (2004) MM iteration; ties count as half a win for each,
and each pair is given ``PRIOR`` of a tie besides, so that an answer which won or lost all has a
finite strength. Both give 1/2 to all when all is tied. Copeland needs every comparison of an answer
and leaves it unjudged otherwise. Bradley-Terry corrects for whom an answer was compared with, and
needs only one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Points = Mapping[tuple[int, int], float]  # (i, j), i < j -> what i took from j; absent: not judged
Aggregate = Callable[[int, Points], "list[float | None]"]

PRIOR = 0.1
MAX_ROUNDS = 10_000
TOLERANCE = 1e-10


def copeland(k: int, points: Points) -> list[float | None]:
    """Share of the points that each of ``k`` answers could win."""
    won, met = [0.0] * k, [0] * k
    for (i, j), point in points.items():
        won[i] += point
        won[j] += 1.0 - point
        met[i] += 1
        met[j] += 1
    return [won[i] / (k - 1) if met[i] == k - 1 else None for i in range(k)]


def bradley_terry(k: int, points: Points) -> list[float | None]:
    """Expected share of the points against all others, from strengths that explain ``points``."""
    met = {i for pair in points for i in pair}
    won = [PRIOR * (k - 1) / 2] * k
    games = [[PRIOR] * k for _ in range(k)]
    for (i, j), point in points.items():
        won[i] += point
        won[j] += 1.0 - point
        games[i][j] += 1.0
        games[j][i] += 1.0
    strength = [1.0] * k
    for _ in range(MAX_ROUNDS):
        before = strength
        strength = [won[i] / _opposition(i, games[i], before) for i in range(k)]
        mean = sum(strength) / k
        strength = [one / mean for one in strength]
        if max(abs(a - b) for a, b in zip(strength, before, strict=True)) < TOLERANCE:
            break
    return [_expected(i, strength) if i in met else None for i in range(k)]


AGGREGATES: dict[str, Aggregate] = {"copeland": copeland, "bradley_terry": bradley_terry}


def points_of_ranks(
    ranks: Sequence[Mapping[int, int]],
) -> tuple[dict[tuple[int, int], float], int]:
    """Points from several rankings of the same answers (answer -> rank, 1 is best).

    A pair that the rankings do not agree on is a tie, as in a comparison with swapped order; the
    second result counts these.
    """
    points, disagreed = {}, 0
    for i in ranks[0]:
        for j in (other for other in ranks[0] if other > i):
            signs = {(rank[j] > rank[i]) - (rank[j] < rank[i]) for rank in ranks}
            disagreed += len(signs) > 1
            points[i, j] = (1.0 + signs.pop()) / 2 if len(signs) == 1 else 0.5
    return points, disagreed


def _opposition(i: int, games: Sequence[float], strength: Sequence[float]) -> float:
    return sum(games[j] / (strength[i] + strength[j]) for j in range(len(strength)) if j != i)


def _expected(i: int, strength: Sequence[float]) -> float:
    others = [one for j, one in enumerate(strength) if j != i]
    return sum(strength[i] / (strength[i] + one) for one in others) / len(others)
