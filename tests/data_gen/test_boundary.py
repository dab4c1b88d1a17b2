"""The knowledge boundary against a model that knows one fact, half knows one, and not the third."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import data_gen
import envs
from data_gen.boundary import REFUSALS
from tests.data_gen.chat_server import MODEL, ChatServer

TEXT = "The tower is 161 metres high. The bell weighs nine tonnes. The clerk was called Adam Roth."
WRITTEN = """Question: How high is the tower?
Answer: 161 metres
Quote: The tower is 161 metres high.
Question: How heavy is the bell?
Answer: nine tonnes
Quote: The bell weighs nine tonnes.
Question: What was the clerk called?
Answer: Adam Roth
Quote: The clerk was called Adam Roth."""

WEIGHTS = itertools.cycle(["nine", "two"])


def behave(body):
    asked = body["messages"][0]["content"]
    if asked.startswith("Write 3 questions"):
        return WRITTEN
    if asked.startswith("Question:"):
        lines = dict(line.split(": ", 1) for line in asked.splitlines()[:3])
        return "Yes." if lines["Right answer"] in lines["Answer to grade"] else "No."
    if "tower" in asked:
        return "It is 161 metres high."
    if "bell" in asked:
        return f"It weighs {next(WEIGHTS)} tonnes."
    return "Berta Klein."


def probe(server, out, **settings):
    server = data_gen.Server(server.url, MODEL)
    return data_gen.knowledge_boundary([TEXT], server, out, quiet=True, **settings)


def dropped(out: Path):
    return json.loads((out / "summary.json").read_text())["dropped"]


def test_what_is_known_is_answered_what_is_not_is_refused_and_between_is_dropped(
    tmp_path: Path,
) -> None:
    with ChatServer(behave) as server:
        data = probe(server, tmp_path / "out")
        assert len(server.bodies) == 1 + 3 * 8 * 2
        assert probe(server, tmp_path / "out").to_list() == data.to_list()
        assert len(server.bodies) == 1 + 3 * 8 * 2
        answering = [b for b in server.bodies if b["messages"][0]["content"].startswith("How high")]
    assert len({body["seed"] for body in answering}) == 8
    assert all(TEXT not in body["messages"][0]["content"] for body in answering)
    known, unknown = data
    assert known["messages"][1]["content"] == "It is 161 metres high."
    assert (known["known"], known["knows"], known["reference"]) == (True, 1.0, "161 metres")
    assert unknown["messages"][0]["content"] == "What was the clerk called?"
    assert unknown["messages"][1]["content"] in REFUSALS
    assert (unknown["known"], unknown["knows"]) == (False, 0.0)
    assert dropped(tmp_path / "out") == {"between known and unknown": 1}


def test_a_grader_of_its_own_writes_and_grades(tmp_path: Path) -> None:
    with ChatServer(behave, models=("student", "teacher")) as server:
        servers = [data_gen.Server(server.url, name) for name in ("student", "teacher")]
        data = data_gen.knowledge_boundary(
            [TEXT], servers, tmp_path / "out", model="student", grader="teacher", quiet=True
        )
    by = {True: "teacher", False: "student"}
    for body in server.bodies:
        asked = body["messages"][0]["content"]
        assert body["model"] == by[asked.startswith(("Write 3", "Question:"))]
    assert set(data["model"]) == {"student"}


@pytest.mark.parametrize(
    ("grade", "reason"), [("hm", "no grade"), ("", "no grade"), ("No.", None), ("Unsure", None)]
)
def test_grades_that_are_none_decide_nothing(tmp_path: Path, grade, reason) -> None:
    def odd(body):
        return grade if body["messages"][0]["content"].startswith("Question:") else behave(body)

    with ChatServer(odd) as server:
        data = probe(server, tmp_path / "out", tries=2)
    assert dropped(tmp_path / "out") == ({reason: 3} if reason else {})
    assert [row["known"] for row in data] == ([] if reason else [False] * 3)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("", "empty"), ("nonsense", "no question in the reply"), ("I'm sorry, I can't", "refusal")],
)
def test_a_writer_without_questions_is_told(tmp_path: Path, reply, reason) -> None:
    with ChatServer(lambda body: reply) as server:
        assert len(probe(server, tmp_path / "out")) == 0
    assert reason in str(dropped(tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"known": 0.2, "unknown": 0.3}, "unknown < known"),
        ({"temperature": 0.0}, "all the same"),
        ({"refusals": []}, "not empty"),
    ],
)
def test_bad_settings_are_told(tmp_path: Path, settings, message) -> None:
    with ChatServer(behave) as server, pytest.raises(data_gen.UsageError, match=message):
        probe(server, tmp_path / "out", **settings)


def questions():
    """Its tasks are not used."""
    rows = [{"prompt": "p", "answer": "a"}]
    return envs.from_tasks(rows, reward="exact", held_out=[{"prompt": "q", "answer": "a"}])


class Archive(envs.ToolEnv):
    def search(self, query: str) -> str:
        """The sentence about something."""
        found = [line for line in TEXT.split(". ") if query in line]
        return found[0] if found else "nothing"

    def judge(self, message):
        raise RuntimeError("what it thinks of the answer does not count")


def searching(found):
    """As ``behave``, but with tools the clerk is looked up under ``found``."""

    def answer(body):
        last = body["messages"][-1]
        if not body.get("tools"):
            return behave(body)
        if last["role"] == "tool":
            return f"It says: {last['content']}"
        arguments = json.dumps({"query": found})
        call = {
            "id": "1",
            "type": "function",
            "function": {"name": "search", "arguments": arguments},
        }
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    return answer


def test_a_tool_fills_the_gap_and_all_rows_name_it(tmp_path: Path) -> None:
    world = envs.Episodes("archive", questions().tasks, Archive)
    with ChatServer(searching("clerk")) as server:
        known, filled = probe(server, tmp_path / "out", fill=world)
    assert json.loads(known["tools"]) == json.loads(filled["tools"])
    assert json.loads(filled["tools"])[0]["function"]["name"] == "search"
    assert [m["role"] for m in known["messages"]] == ["user", "assistant"]
    assert [m["role"] for m in filled["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert filled["messages"][-1]["content"] == "It says: The clerk was called Adam Roth."
    assert (filled["known"], filled["knows"]) == (False, 0.0)
    with ChatServer(searching("verger")) as server:
        assert len(probe(server, tmp_path / "nothing", fill=world)) == 1
    assert dropped(tmp_path / "nothing")["fill: not right"] == 1


def test_what_fills_a_gap_has_tools(tmp_path: Path) -> None:
    with ChatServer(behave) as server, pytest.raises(data_gen.UsageError, match="has no tools"):
        probe(server, tmp_path / "out", fill=questions())
    assert not (tmp_path / "out").exists()
