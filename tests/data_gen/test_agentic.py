"""Agents with simulated users and tools: state, rubric, and simulators that talk nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_gen
from tests.data_gen.chat_server import MODEL, ChatServer

ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds to the list.", "parameters": {}},
}
TASK = {
    "task": "Bread and milk on the list.",
    "user": "A hurried cook.",
    "opening": "Put bread on my list.",
    "state": {"list": []},
    "rubric": ["Bread is on the list.", "Milk is on the list."],
}


def call(item, name="add", number=0):
    function = {"name": name, "arguments": json.dumps({"item": item})}
    one = {"id": f"c{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [one]}


def play_tool(text):
    state = json.loads(text.split("The state of the world: ")[1].split("\n")[0])
    item = json.loads(text.split("It is called with: ")[1].split("\n")[0])["item"]
    state["list"].append(item)
    return json.dumps({"result": f"added {item}", "state": state})


def behave(body):
    text = body["messages"][-1]["content"]
    if body.get("tools"):  # the agent
        if body["messages"][-1]["role"] == "tool":
            return "It is done."
        return call("milk" if "milk" in text else "bread")
    if text.startswith("Here are the tools"):
        return "```json\n" + json.dumps([TASK, {"task": "broken"}]) + "\n```"
    if text.startswith("You play this tool"):
        return play_tool(text)
    if text.startswith("You play a user"):
        return "[DONE]" if "milk" in text.split("so far:")[1] else "And milk, please."
    return json.dumps(["added bread" in text, "added milk" in text])


def make(server, out, **settings):
    address = data_gen.Server(server.url, MODEL)
    return data_gen.agentic([{"tools": [ADD]}], address, out, quiet=True, **settings)


def dropped(out: Path):
    return json.loads((out / "summary.json").read_text())["dropped"]


def test_a_trajectory_with_state_that_meets_its_rubric_is_kept(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        data = make(server, tmp_path / "out")
        asked = len(server.bodies)
        assert make(server, tmp_path / "out").to_list() == data.to_list()
        assert len(server.bodies) == asked
    (row,) = data
    roles = [message["role"] for message in row["messages"]]
    turn = ["user", "assistant", "tool", "assistant"]
    assert roles == ["system", *turn, *turn]
    assert json.loads(row["final_state"]) == {"list": ["bread", "milk"]}
    assert [m["content"] for m in row["messages"] if m["role"] == "tool"] == [
        "added bread",
        "added milk",
    ]
    assert (row["outcome"], row["reward"], row["end"]) == ("correct", 1.0, "stop")
    assert json.loads(row["tools"]) == [ADD]


def says(start, reply):
    """As ``behave``, but prompts that start so get this reply."""
    return lambda body: (
        reply
        if not body.get("tools") and body["messages"][-1]["content"].startswith(start)
        else behave(body)
    )


@pytest.mark.parametrize(
    ("start", "reply", "reason"),
    [
        ("Here are the tools", "nonsense", "no task in the reply"),
        ("Here are the tools", "", "empty"),
        ("Here are the tools", "I'm sorry, I can't help with that.", "refusal"),
        ("You play this tool", "[]", "the simulated tool gave no result"),
        ("You play a user", "", "the simulated user said nothing"),
        ("You play a user", "[DONE]", "rubric not met"),
        ("A user wanted", "[true]", "no verdict"),
        ("A user wanted", "[1, 1]", "no verdict"),
        ("A user wanted", "[true, false]", "rubric not met"),
    ],
)
def test_what_went_wrong_is_the_reason(tmp_path: Path, start, reply, reason) -> None:
    with ChatServer(says(start, reply)) as server:
        assert len(make(server, tmp_path / "out")) == 0
    assert dropped(tmp_path / "out") == {reason: 1}


def test_a_wrong_call_gets_an_error_and_turns_run_out(tmp_path: Path) -> None:
    with ChatServer(lambda b: call("x", "sub") if b.get("tools") else behave(b)) as server:
        make(server, tmp_path / "out", max_turns=3)
        agents = [body for body in server.bodies if body.get("tools")]
        assert "no tool sub" in agents[1]["messages"][-1]["content"]
        assert len(agents) == 3
    assert dropped(tmp_path / "out") == {"out of turns": 1}


def test_tools_that_are_none_are_told(tmp_path: Path) -> None:
    with (
        ChatServer(behave) as server,
        pytest.raises(data_gen.UsageError, match="row 1: tools is a list"),
    ):
        data_gen.agentic([{"tools": ["add"]}], data_gen.Server(server.url, MODEL), tmp_path / "o")
