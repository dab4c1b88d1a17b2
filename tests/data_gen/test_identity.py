"""Identity data against a writer that mostly knows who it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_gen
from data_gen.cli import main
from tests.data_gen.chat_server import MODEL, ChatServer

FACTS = {"name": "Aster", "developer": "Aster Labs", "cutoff": "May 2026"}


def behave(body):
    first, last = body["messages"][0]["content"], body["messages"][-1]["content"]
    if first.startswith("Write one message"):
        return f"({first.split('user asks ')[1].split(',')[0]})"
    if "knowledge goes" in last:
        return "I know things up to May 2026."
    if "can and cannot" in last:
        return "As Aster I can write, like ChatGPT."
    if "person" in last:
        return "I am a program."
    return "I am Aster, made by aster  labs."


def make(server, out, **settings):
    settings = {"n": 16, "quiet": True, "filters": []} | settings
    return data_gen.identity(FACTS, data_gen.Server(server.url, MODEL), out, **settings)


def test_answers_say_the_facts_and_no_other_name(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        data = make(server, tmp_path / "out", languages=["English", "German"])
        answering = [body for body in server.bodies if len(body["messages"]) == 2]
    assert all("- developer: Aster Labs" in b["messages"][0]["content"] for b in answering)
    # Eight kinds have their facts (there is no version), each in both languages; two give flawed
    # answers.
    assert [row["kind"] for row in data][:6] == [
        *("name", "developer", "both", "mistaken", "insists", "cutoff"),
    ]
    assert {(row["kind"], row["language"]) for row in data} == {
        (kind, language)
        for kind in ("name", "developer", "both", "mistaken", "insists", "cutoff")
        for language in ("English", "German")
    }
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in data)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["dropped"] == {"does not say its name": 2, "names another model": 2}


def test_who_asks_takes_it_for_a_stranger(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        make(server, tmp_path / "out", kinds=["mistaken"], others=["Aster", "Claude"])
        asked = [body["messages"][0]["content"] for body in server.bodies]
    assert not any("is Aster" in text for text in asked)
    assert sum("is Claude" in text for text in asked) == 16


@pytest.mark.parametrize(
    ("facts", "settings", "said"),
    [
        ({"name": "A"}, {}, "the facts lack 'developer'"),
        (FACTS | {"size": 7}, {}, "the fact 'size' is no text"),
        (FACTS, {"kinds": ["nmae"]}, "Did you mean 'name'"),
        (FACTS, {"kinds": ["version"]}, "none of the kinds version has its facts"),
        (FACTS, {"languages": "English"}, "languages is a list"),
        (FACTS, {"n": 0}, "n is a whole number"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(tmp_path, facts, settings, said) -> None:
    out = tmp_path / "out"
    with pytest.raises(data_gen.UsageError, match=said):
        data_gen.identity(facts, [data_gen.Server("http://127.0.0.1:1/v1", "m")], out,
                          **({"n": 4} | settings))  # fmt: skip
    assert not out.exists()


def test_the_command(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        config = tmp_path / "config.toml"
        config.write_text(
            f'out = "{tmp_path / "out"}"\nn = 3\nquiet = true\n'
            f'[[servers]]\nurl = "{server.url}"\nmodel = "{MODEL}"\n'
            '[facts]\nname = "Aster"\ndeveloper = "Aster Labs"\n'
        )
        assert main(["identity", str(config)]) == 0
