"""Preference pairs against scripted models and judges, and from votes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_gen
from rewards import Outcome, Score
from tests.data_gen.chat_server import MODEL, ChatServer
from tests.data_gen.test_rejection import right_on_even_seeds, sums
from tests.rewards.judge_server import JudgeServer, Reply


def pair(server, out, **settings):
    arguments = {"n_tasks": 12, "samples": 4, "seed": 1, "quiet": True} | settings
    env = arguments.pop("env", None) or sums()
    return data_gen.preferences(env, data_gen.Server(server.url, MODEL), out, **arguments)


def summary(out: Path):
    return json.loads((out / "summary.json").read_text())


def text(messages) -> str:
    (message,) = messages
    return message["content"]


def test_right_is_chosen_over_wrong_and_tasks_without_both_give_no_pair(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        data = pair(server, tmp_path / "out")
        seeds: dict[str, set[int]] = {}
        for body in server.bodies:
            seeds.setdefault(text(body["messages"]), set()).add(body["seed"] % 2)
    mixed = [question for question, parities in seeds.items() if len(parities) == 2]
    assert {text(row["prompt"]) for row in data} == set(mixed)
    assert summary(tmp_path / "out")["dropped"] == {"all alike": 12 - len(mixed)}
    for row in data:
        number = int(text(row["prompt"]).split()[2])
        assert (text(row["chosen"]), text(row["rejected"])) == (str(number + 1), str(number + 2))
        assert (row["chosen_score"], row["rejected_score"], row["judged_by"]) == (
            1.0,
            0.0,
            "reward",
        )
        assert (row["model"], row["rejected_model"], row["n_judged"]) == (MODEL, MODEL, 4)


def by_length(completion, **columns):
    return Score(float(len(completion)), Outcome.CORRECT)


def test_pairs_go_from_the_outside_in_while_the_margin_is_kept(tmp_path: Path) -> None:
    told = iter(["x", "xxxxx", "xx", "xxxxxxxxx"])
    with ChatServer(lambda body: next(told)) as server:
        data = pair(server, tmp_path / "out", n_tasks=1, reward=by_length, pairs=2, margin=3.0)
    assert [(row["chosen_score"], row["rejected_score"]) for row in data] == [(9.0, 1.0)]
    told = iter(["x", "xxxxx", "xx", "xxxxxxxxx"])
    with ChatServer(lambda body: next(told)) as server:
        data = pair(server, tmp_path / "b", n_tasks=1, reward=by_length, pairs=5, margin=2.0)
    assert [(row["chosen_score"], row["rejected_score"]) for row in data] == [(9, 1), (5, 2)]


def test_what_was_cut_is_in_no_pair(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds, finish="length") as server:
        assert len(pair(server, tmp_path / "out")) == 0
    assert summary(tmp_path / "out")["dropped"] == {"fewer than two answers to compare": 12}


def the_longer(asked):
    first, second = len(asked.text("first")), len(asked.text("second"))
    return asked.verdict(
        better="first" if first > second else "second" if second > first else "tie"
    )


def test_a_judge_compares_and_is_not_asked_twice(tmp_path: Path) -> None:
    def behave(body):
        return "why " * (1 + body["seed"] % 5)

    with ChatServer(behave) as server, JudgeServer(the_longer) as judge:
        settings = {
            "env": ["Why is the sky blue?", "Why is grass green?"],
            "by": "judge",
            "n_tasks": 2,
            "judge": {"url": judge.url, "model": "judge", "check": False},
        }
        data = pair(server, tmp_path / "out", **settings)
        asked, judged = len(server.bodies), len(judge.asked)
        assert asked == 8
        for row in data:
            assert len(text(row["chosen"])) > len(text(row["rejected"]))
            assert row["chosen_score"] > row["rejected_score"]
        items = tmp_path / "out/work/items"
        for path in items.glob("*.jsonl"):
            path.unlink()  # as if it had been killed before any item was finished
        again = pair(server, tmp_path / "out", **settings)
        assert (len(server.bodies), len(judge.asked)) == (asked, judged)
    assert again.to_list() == data.to_list()
    assert len(data) >= 1
    assert judged > 0


def test_a_judge_that_gives_no_verdict_fails_the_item(tmp_path: Path) -> None:
    def behave(body):
        return "why " * (1 + body["seed"] % 5)

    with ChatServer(behave) as server, JudgeServer(lambda asked: Reply("hm")) as judge:
        table = {"url": judge.url, "model": "judge", "check": False, "asks": 1}
        data = pair(server, tmp_path / "out", env=["Why?"], by="judge", n_tasks=1, judge=table)
    assert len(data) == 0
    (reason,) = summary(tmp_path / "out")["failures"]
    assert "the judge gave no verdict" in reason


def test_four_aspects_are_graded_and_kept(tmp_path: Path) -> None:
    def grade(asked):
        long = min(5, 1 + len(asked.text("answer").split()))
        return asked.verdict(
            instruction_following=long, honesty=3, truthfulness=3, helpfulness=long
        )

    with (
        ChatServer(lambda body: "so " * (1 + body["seed"] % 4)) as server,
        JudgeServer(grade) as judge,
    ):
        table = {"url": judge.url, "model": "judge", "check": False}
        data = pair(server, tmp_path / "out", env=["Why?"], by="aspects", n_tasks=1, judge=table)
    (row,) = data
    better, worse = json.loads(row["chosen_parts"]), json.loads(row["rejected_parts"])
    assert better["honesty"] == worse["honesty"] == 0.5
    assert better["helpfulness"] > worse["helpfulness"]
    words = len(text(row["chosen"]).split())
    assert better["helpfulness"] == min(5, 1 + words) / 4 - 0.25
    assert row["chosen_score"] == pytest.approx((2 * better["helpfulness"] + 1) / 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "judge"}, "a judge is needed"),
        ({"by": "jugde"}, "judge"),
        ({"samples": 1}, "samples of 2 or more"),
        ({"env": ["Why?"]}, "takes an environment"),
        ({"by": "judge", "judge": {"url": "http://127.0.0.1:1"}}, "url and model"),
    ],
)
def test_bad_settings_are_told_before_anything_is_asked(tmp_path: Path, settings, message) -> None:
    with ChatServer(right_on_even_seeds) as server:
        with pytest.raises(data_gen.UsageError, match=message):
            pair(server, tmp_path / "out", **settings)
        assert server.bodies == []
    assert not (tmp_path / "out").exists()


def critic(body):
    asked = body["messages"][-1]["content"]
    if asked.endswith("Write the new answer alone."):
        return "A sure answer." if "fine" in asked else "A better answer."
    if "Principle:" in asked:
        return "No change." if "Is it fine" in asked else "It is too short."
    return "An answer."


def test_the_revised_answer_is_preferred_to_the_first(tmp_path: Path) -> None:
    with ChatServer(critic) as server:
        prompts, address = ["Is it fine?", "What is it?"], data_gen.Server(server.url, MODEL)
        data = data_gen.constitutional(prompts, address, tmp_path / "out", rounds=2, quiet=True)
        asked = len(server.bodies)
        assert asked == 3 + 5
        data_gen.constitutional(prompts, address, tmp_path / "out", rounds=2, quiet=True)
        assert len(server.bodies) == asked
    (row,) = data
    assert text(row["prompt"]) == "What is it?"
    assert (text(row["chosen"]), text(row["rejected"])) == ("A better answer.", "An answer.")
    assert row["critiques"] == ["It is too short."] * 2
    assert set(row["principles"]) <= set(data_gen.constitutional.__globals__["PRINCIPLES"])
    assert summary(tmp_path / "out")["dropped"] == {"nothing to revise": 1}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "answer: empty"),
        ("I'm sorry, I can't help with that.", "revision changes nothing"),
        ("nonsense", "revision changes nothing"),
    ],
)
def test_answers_that_cannot_be_revised_are_dropped(tmp_path: Path, reply, reason) -> None:
    with ChatServer(lambda body: reply) as server:
        address = data_gen.Server(server.url, MODEL)
        data = data_gen.constitutional(["Why?"], address, tmp_path / "out", quiet=True)
    assert len(data) == 0
    assert summary(tmp_path / "out")["dropped"] == {reason: 1}


BALLOTS = [
    {"prompt": "Why?", "a": "because", "b": "no idea", "vote": "a"},
    {"prompt": "Why?", "a": "no idea", "b": "because", "vote": "b"},  # the same, turned round
    {"prompt": "Why?", "a": "because", "b": "no idea", "vote": "tie"},
    {"prompt": "How?", "a": "so", "b": "thus", "vote": "a"},
    {"prompt": "How?", "a": "so", "b": "thus", "vote": "b"},
]


def test_votes_are_counted_over_both_orders(tmp_path: Path) -> None:
    data = data_gen.votes(BALLOTS, tmp_path / "out", quiet=True)
    (row,) = data
    assert (text(row["chosen"]), text(row["rejected"])) == ("because", "no idea")
    assert (row["n_votes"], row["agreement"]) == (3, pytest.approx(2 / 3))
    assert summary(tmp_path / "out")["dropped"] == {"a tie": 1}
    strict = data_gen.votes(BALLOTS, tmp_path / "b", min_agreement=0.7, quiet=True)
    assert len(strict) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"vote": "c"}, "vote 1: vote is"), ({"b": "because"}, "the same"), ({"a": " "}, "a is the")],
)
def test_a_row_that_is_no_vote_is_told(tmp_path: Path, change, message) -> None:
    with pytest.raises(data_gen.UsageError, match=message):
        data_gen.votes([BALLOTS[0] | change], tmp_path / "out")
    assert not (tmp_path / "out").exists()
