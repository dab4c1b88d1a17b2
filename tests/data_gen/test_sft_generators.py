"""Generators of SFT data against a scripted server: values, odd replies, nothing asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_gen
from data_gen.documents import read_grade, read_questions
from tests.data_gen.chat_server import MODEL, ChatServer

TOWER = "The tower of Ulm is 161 metres high. It was finished in the year 1890."
COURT = "A court in Lyon sat for nine days. The clerk wrote all of it down."
CALLS = {
    "evolve": lambda server, out, **s: data_gen.evolve(["Name a tower."], server, out, **s),
    "magpie": lambda server, out, **s: data_gen.magpie(server, out, n=3, **s),
    "questions": lambda server, out, **s: data_gen.questions([TOWER], server, out, **s),
    "back_translate": lambda server, out, **s: data_gen.back_translate([TOWER], server, out, **s),
    "personas": lambda server, out, **s: data_gen.personas([TOWER], server, out, **s),
}


def run(name, server, out, **settings):
    return CALLS[name](data_gen.Server(server.url, MODEL), out, quiet=True, **settings)


def dropped(out: Path) -> dict[str, int]:
    return json.loads((out / "summary.json").read_text())["dropped"]


def asked_of(body) -> str:
    return body["messages"][-1]["content"]


def by_prompt(body):
    """Rewrites by adding a word, writes what is asked for elsewhere, else answers with a fact."""
    text = asked_of(body)
    if text.startswith("Rewrite the given") or text.startswith("Write a new instruction"):
        return text.rpartition("\n")[2] + f" Use the words w{body['seed']} and v{body['seed']}."
    if text.startswith("Write 3 questions"):
        return (
            "1. **Question:** How high is the tower of Ulm?\nAnswer: 161 metres.\n"
            'Quote: "The tower of Ulm is\n161 metres high."\n\n'
            "Question: Who built it?\nAnswer: A giant.\nQuote: It was built by a giant.\n\n"
            "Question: When does the text say it ended?\nAnswer: 1890.\n"
            "Quote: finished in the year 1890\n"
        )
    if text.startswith("The text below"):
        return "Tell me about the tower of Ulm." if "Ulm" in text else "Dance."
    if text.startswith("Here are an instruction"):
        return "It fits. Score: 5" if "Ulm" in text else "It does not. Score: 2"
    if text.startswith("Who is likely"):
        return "A mason from Ulm."
    if text.startswith("A person: A mason from Ulm."):
        return f"How do I set stone {body['seed']}?"
    return f"{text or 'What is rain'}?" if not text else f"Answer to: {text}"


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_again_asks_nothing_and_gives_the_same(tmp_path: Path, name) -> None:
    with ChatServer(by_prompt) as server:
        first = run(name, server, tmp_path / "a").to_list()
        asked = len(server.bodies)
        assert run(name, server, tmp_path / "a").to_list() == first
        assert len(server.bodies) == asked
        assert run(name, server, tmp_path / "b").to_list() == first  # a function of the replies
    assert first
    assert {row["generator"] for row in first} == {name}
    assert all(row["messages"][-1]["role"] == "assistant" for row in first)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("reply", "why"),
    [("I'm sorry, but I can't help with that.", "refusal"), ("", "empty"), ("<think>...", "empty")],
)
def test_replies_of_no_use_are_dropped_with_the_reason(tmp_path: Path, name, reply, why) -> None:
    with ChatServer(lambda body: reply) as server:
        data = run(name, server, tmp_path / "out")
    assert len(data) == 0
    assert all(reason.endswith(why) for reason in dropped(tmp_path / "out"))
    assert sum(dropped(tmp_path / "out").values()) >= 1


@pytest.mark.parametrize("name", CALLS)
def test_a_reply_that_was_cut_is_dropped(tmp_path: Path, name) -> None:
    with ChatServer(lambda body: "long long", finish="length") as server:
        assert len(run(name, server, tmp_path / "out")) == 0
    assert all(reason.endswith("cut off") for reason in dropped(tmp_path / "out"))


def test_evolve_goes_on_from_the_last_good_rewrite(tmp_path: Path) -> None:
    def behave(body):
        if body["temperature"] == 0.8 and len(server.bodies) == 3:  # the second rewrite
            return "Here is the rewritten prompt: Name a tower."
        return by_prompt(body)

    with ChatServer(behave) as server:
        data = run("evolve", server, tmp_path / "out")
    assert [row["generation"] for row in data] == [1, 3]
    first, third = (row["messages"][0]["content"] for row in data)
    assert first.startswith("Name a tower. Use the words")
    assert third.startswith(first)
    assert dropped(tmp_path / "out") == {"rewrite speaks of rewriting": 1}
    assert len(server.bodies) == 5


def test_evolve_refuses_an_unknown_way(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server, pytest.raises(data_gen.UsageError, match="breadth"):
        run("evolve", server, tmp_path / "out", ways=["bredth"])


def test_magpie_asks_with_an_empty_turn_that_goes_on(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server:
        data = run("magpie", server, tmp_path / "out", system="You help.", filters=())
    drawn = [body for body in server.bodies if "continue_final_message" in body]
    assert len(drawn) == 3
    assert len({body["seed"] for body in drawn}) == 3
    for body in drawn:
        assert body["messages"] == [
            {"role": "system", "content": "You help."},
            {"role": "user", "content": ""},
        ]
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
        assert body["max_tokens"] == 256
    question, answer = data[0]["messages"]
    assert question == {"role": "user", "content": "What is rain?"}
    assert answer["content"] == "Answer to: What is rain?"


def test_questions_are_kept_where_the_quote_is_in_the_document(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server:
        data = run("questions", server, tmp_path / "out")
    (row,) = data
    question, answer = row["messages"]
    assert question["content"] == "How high is the tower of Ulm?"
    assert answer["content"] == "161 metres."
    assert dropped(tmp_path / "out") == {
        "quote not in the document": 1,
        "question leans on the document": 1,
    }


def test_a_document_that_is_too_long_is_counted_and_not_asked_about(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server:
        run("questions", server, tmp_path / "out", max_chars=20)
        assert server.bodies == []
    assert dropped(tmp_path / "out") == {"document too long": 1}


def test_back_translation_keeps_pairs_with_a_good_grade(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server:
        address = data_gen.Server(server.url, MODEL)
        data = data_gen.back_translate([TOWER, COURT], address, tmp_path / "out", quiet=True)
    (row,) = data
    assert [one["content"] for one in row["messages"]] == ["Tell me about the tower of Ulm.", TOWER]
    assert row["grade"] == 5
    assert dropped(tmp_path / "out") == {"grade too low": 1}


def test_a_persona_that_is_given_is_not_asked_for(tmp_path: Path) -> None:
    with ChatServer(by_prompt) as server:
        address, rows = data_gen.Server(server.url, MODEL), [{"persona": "A mason from Ulm."}]
        data = data_gen.personas(rows, address, tmp_path / "out", quiet=True)
        assert len(server.bodies) == 4
    assert [row["persona"] for row in data] == ["A mason from Ulm."] * 2
    assert data[0]["messages"][0]["content"].startswith("How do I set stone")


REVIEWS = [{"id": f"r{i}", "review": f"{{label}} {i}", "label": "good"} for i in range(20)]
TEMPLATES = [
    {"prompt": f"Form {i}: {{review}}", "answer": "{label}" if i else "It is {label}."}
    for i in range(4)
]


def test_templates_are_drawn_by_seed_and_filled_once(tmp_path: Path) -> None:
    def make(name, **settings):
        arguments = {"templates": TEMPLATES, "per_row": 2, "quiet": True} | settings
        return data_gen.templated(REVIEWS, tmp_path / name, **arguments)

    data = make("a")
    assert len(data) == 40
    for row in data:
        number = row["template"]
        asked, answer = (one["content"] for one in row["messages"])
        assert asked == f"Form {number}: {{label}} {row['source'][1:]}"
        assert answer == ("good" if number else "It is good.")
    assert set(data["template"]) == {0, 1, 2, 3}
    assert make("b").to_list() == data.to_list()
    assert make("c", seed=1).to_list() != data.to_list()


def test_a_template_must_name_columns_of_all_rows(tmp_path: Path) -> None:
    bad = [{"prompt": "{reveiw}", "answer": "x"}]
    with pytest.raises(data_gen.UsageError, match=r"column 'reveiw'.*review"):
        data_gen.templated(REVIEWS, tmp_path / "a", templates=bad)
    with pytest.raises(data_gen.UsageError, match="per_row is 2, and there are 1"):
        data_gen.templated(REVIEWS, tmp_path / "a", templates=TEMPLATES[:1], per_row=2)
    assert not (tmp_path / "a").exists()


def test_what_replies_are_read_for() -> None:
    assert read_grade("Score: 3\nno, Score: **4**") == 4
    assert read_grade("Score: 4.5") is None
    assert read_grade("nothing") is None
    assert read_questions("Question: a\nAnswer: b") == []
