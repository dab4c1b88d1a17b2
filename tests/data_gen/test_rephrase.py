"""Documents said anew: styles, share, provenance, and what is no rephrasing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import data_gen
from tests.data_gen.chat_server import MODEL, ChatServer

DOCUMENTS = [
    {"id": f"d{i}", "text": f"Number {i} of the towers is {i * 7} metres high and old."}
    for i in range(40)
]


def behave(body):
    style = body["messages"][0]["content"].split()[0]
    return f"{style}: {body['seed']} says it in quite other words."


def say(server, out, documents=DOCUMENTS, **settings):
    server = data_gen.Server(server.url, MODEL)
    return data_gen.rephrase(documents, server, out, quiet=True, **settings)


def test_each_row_says_its_style_and_document(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        data = say(server, tmp_path / "out", per_document=2)
        assert len(server.bodies) == 80
        assert say(server, tmp_path / "out", per_document=2).to_list() == data.to_list()
        assert len(server.bodies) == 80
    assert len(data) == 120
    styles = Counter(row["style"] for row in data)
    assert styles["original"] == 40
    assert set(styles) == {"original", "rewrite", "summary", "questions"}
    first = {"rewrite": "Rewrite", "summary": "Summarise", "questions": "Turn"}
    for row in data:
        if row["style"] == "original":
            assert row["text"] == DOCUMENTS[int(row["source"][1:])]["text"]
            assert row["model"] == ""
        else:
            assert row["text"].startswith(first[row["style"]])
    assert set(Counter(row["source"] for row in data).values()) == {3}


def test_the_share_and_the_originals_are_as_asked(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        data = say(server, tmp_path / "out", share=0.5, originals=False)
        assert 8 <= len(data) == len(server.bodies) <= 32
        none = say(server, tmp_path / "none", share=0.0)
        assert len(none) == 40
    assert "original" not in set(data["style"])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        ("I'm sorry, I can't help with that.", "refusal"),
        (DOCUMENTS[0]["text"].upper(), "copies the document"),
    ],
)
def test_what_is_no_rephrasing_is_dropped(tmp_path: Path, reply, reason) -> None:
    with ChatServer(lambda body: reply) as server:
        data = say(server, tmp_path / "out", DOCUMENTS[:1])
    assert list(data["style"]) == ["original"]
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == {reason: 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"styles": ["rewriet"]}, "rewrite"),
        ({"per_document": 4}, "4 of 3 styles"),
        ({"share": 2}, "share is from 0 to 1"),
    ],
)
def test_bad_settings_are_told(tmp_path: Path, settings, message) -> None:
    with ChatServer(behave) as server, pytest.raises(data_gen.UsageError, match=message):
        say(server, tmp_path / "out", **settings)
