"""Ratings against closed forms, a published example and the equations of the maximum."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from posttrain.cli import main
from posttrain.errors import UsageError
from posttrain.evaluation.arena import page
from posttrain.evaluation.ratings import SCALE, bradley_terry, online_elo, rank
from posttrain.evaluation.votes import Ballot, read_votes


def votes_of(wins: dict[tuple[str, str], int]) -> list[Ballot]:
    return [Ballot(a, b, "a") for (a, b), n in wins.items() for _ in range(n)]


def test_two_players_are_log_odds_and_ties_are_halves() -> None:
    votes = votes_of({("x", "y"): 7, ("y", "x"): 3}) + [Ballot("y", "x", "tie")] * 4
    found = bradley_terry(votes)
    assert found["x"] - found["y"] == pytest.approx(math.log(9 / 5), abs=1e-9)
    first, second = rank(votes, draws=20)
    assert (first.model, first.wins, first.losses, first.ties) == ("x", 7, 3, 4)
    assert first.rating - second.rating == pytest.approx(SCALE * math.log(9 / 5), abs=1e-9)
    assert first.rating + second.rating == pytest.approx(2000, abs=1e-9)


def test_ten_to_one_are_400_points() -> None:
    first, second = rank(votes_of({("x", "y"): 10, ("y", "x"): 1}), draws=2)
    assert first.rating - second.rating == pytest.approx(400, abs=1e-9)


def test_a_chain_is_the_sum_of_its_log_odds() -> None:
    # z meets only y, so its distance to x is that to y and y's to x
    wins = {("x", "y"): 3, ("y", "x"): 2, ("y", "z"): 90_000, ("z", "y"): 1}
    found = bradley_terry(votes_of(wins))
    assert found["x"] - found["y"] == pytest.approx(math.log(1.5), abs=1e-9)
    assert found["y"] - found["z"] == pytest.approx(math.log(90_000), abs=1e-9)


# American League 1987, Agresti, Categorical Data Analysis (2nd ed.), table 10.10: wins of the row
# over the column; and his fit, with Baltimore at 0.
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = (
    (0, 7, 9, 7, 7, 9, 11),
    (6, 0, 7, 5, 11, 9, 9),
    (4, 6, 0, 7, 7, 8, 12),
    (6, 8, 6, 0, 6, 7, 10),
    (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6),
    (2, 4, 1, 3, 1, 7, 0),
)
FITTED = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0)


def baseball() -> list[Ballot]:
    pairs = itertools.permutations(range(7), 2)
    return votes_of({(TEAMS[i], TEAMS[j]): WINS[i][j] for i, j in pairs})


def test_the_published_example() -> None:
    found = bradley_terry(baseball())
    shifted = [found[team] - found["Baltimore"] for team in TEAMS]
    assert shifted == pytest.approx(FITTED, abs=0.005)


def test_wins_are_what_the_ratings_expect() -> None:
    """The likelihood's equations: each player's wins equal their expectation (Ford 1957)."""
    votes = [*baseball(), *[Ballot("Detroit", "Boston", "tie")] * 5]
    found = bradley_terry(votes)
    expected: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for vote in votes:
        chance = 1 / (1 + math.exp(found[vote.b] - found[vote.a]))
        expected.update({vote.a: chance, vote.b: 1 - chance})
        actual.update({vote.a: vote.taken, vote.b: 1 - vote.taken})
    assert {t: expected[t] - actual[t] for t in TEAMS} == pytest.approx(
        dict.fromkeys(TEAMS, 0), abs=1e-9
    )


def test_a_prior_by_hand() -> None:
    # x beats y once, and each has one tie with an opponent at 0: by symmetry theta and -theta, and
    # 1 - s(2 theta) + 1/2 - s(theta) = 0; no closed form, so by bisection
    low, high = 0.0, 5.0
    for _ in range(200):
        middle = (low + high) / 2
        sign = 1.5 - 1 / (1 + math.exp(-2 * middle)) - 1 / (1 + math.exp(-middle))
        low, high = (middle, high) if sign > 0 else (low, middle)
    found = bradley_terry([Ballot("x", "y", "a")], prior=1.0)
    assert found == pytest.approx({"x": low, "y": -low}, abs=1e-9)


def test_what_cannot_be_rated_is_named() -> None:
    with pytest.raises(UsageError, match="of x none ever lost to any of y"):
        bradley_terry([Ballot("y", "x", "b")])
    with pytest.raises(UsageError, match="none ever met any of"):
        bradley_terry(votes_of({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 1, ("d", "c"): 1}))
    with pytest.raises(UsageError, match="of b, c none ever lost to any of a"):
        bradley_terry(votes_of({("b", "a"): 1, ("b", "c"): 1, ("c", "b"): 1}))
    cycle = votes_of({(str(i), str((i + 1) % 9)): 1 for i in range(9)})
    assert list(bradley_terry(cycle).values()) == pytest.approx([0] * 9, abs=1e-9)


def test_intervals_are_those_of_the_normal_approximation() -> None:
    # 600 against 400: log-odds 0.405 with standard error sqrt(1/600 + 1/400)
    votes = votes_of({("x", "y"): 600, ("y", "x"): 400})
    first, second = rank(votes)
    half = SCALE * 1.96 * math.sqrt(1 / 600 + 1 / 400) / 2  # each moves half of the difference
    assert (first.high - first.rating, first.rating - first.low) == pytest.approx(
        (half, half), rel=0.1
    )
    assert rank(votes) == [first, second]  # a seed
    # four votes on one question are one vote's worth of evidence: twice as wide
    same = [Ballot(v.a, v.b, v.winner, str(i // 4)) for i, v in enumerate(votes)]
    wide = rank(same)[0]
    assert (wide.high - wide.low) / (first.high - first.low) == pytest.approx(2, rel=0.15)


def test_a_single_loss_is_in_every_draw() -> None:
    first = rank(votes_of({("x", "y"): 20, ("y", "x"): 1}))[0]
    assert math.isfinite(first.high) and first.high < 3000


def test_online_elo_by_hand() -> None:
    found = online_elo([Ballot("x", "y", "a"), Ballot("y", "x", "tie")], k=32)
    # 1016 and 984, then a tie moves 32 (1/2 - 1 / (1 + 10^(32/400)))
    moved = 32 * (0.5 - 1 / (1 + 10 ** (32 / 400)))
    assert found == pytest.approx({"x": 1016 - moved, "y": 984 + moved}, abs=1e-9)


def test_ratings_recover_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = {"a": 0.8, "b": 0.1, "c": -0.2, "d": -0.7}
    votes = []
    for _ in range(8000):
        x, y = rng.permutation(list(truth))[:2]
        won = rng.random() < 1 / (1 + math.exp(truth[y] - truth[x]))
        votes.append(Ballot(str(x), str(y), "a" if won else "b"))
    assert bradley_terry(votes) == pytest.approx(truth, abs=0.08)


def test_the_command_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "votes.jsonl", tmp_path / "arena.html"
    rows = [{"a": "<b>x", "b": "y", "winner": w, "task": 3} for w in ("a", "b", "a", "tie")]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert main(["arena", str(file), "--html", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["votes"] == 4
    assert [one["model"] for one in printed["models"]] == ["<b>x", "y"]
    assert printed["models"][0]["wins"] == 2
    text = out.read_text()
    assert "&lt;b&gt;x" in text and "<b>x" not in text
    assert text == page(rank(read_votes(file)), 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: not JSON"),
        ('{"a": "x", "winner": "a"}', ":1: a vote has the models a and b"),
        ('{"a": "x", "b": "x", "winner": "a"}', "compared with itself"),
        ('{"a": "x", "b": "y", "winner": "x"}', "winner is a, b or tie, got 'x'"),
        ("", "holds no vote"),
    ],
)
def test_a_bad_file_is_told_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text(line + "\n")
    assert main(["arena", str(file)]) == 2
    assert message in capsys.readouterr().err
