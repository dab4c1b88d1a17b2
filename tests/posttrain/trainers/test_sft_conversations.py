"""Rows of every usual form become the same conversation; what can't be one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UsageError
from posttrain.trainers.conversations import (
    Format,
    conversation,
    conversations,
    detect,
    read_rows,
)

ASKED = {"role": "user", "content": "What is 2 + 2?"}
SAID = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [ASKED, SAID]}, Format.MESSAGES),
        ({"prompt": "What is 2 + 2?", "completion": "4"}, Format.PROMPT_COMPLETION),
        ({"prompt": [ASKED], "completion": [SAID]}, Format.PROMPT_COMPLETION),
        ({"instruction": "What is 2 + 2?", "input": "", "output": "4"}, Format.ALPACA),
        (
            {
                "conversations": [
                    {"from": "human", "value": "What is 2 + 2?"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            Format.SHAREGPT,
        ),
        ({"conversations": [ASKED, SAID]}, Format.SHAREGPT),
    ],
)
def test_every_form_means_the_same(row: dict[str, Any], form: Format) -> None:
    assert detect(row) is form
    assert conversation(row).messages == (ASKED, SAID)


def test_alpaca_puts_the_input_below_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "2 + 2", "output": "4", "system": "Be brief."}
    assert [m["content"] for m in conversation(row).messages] == ["Be brief.", "Add.\n\n2 + 2", "4"]


def test_what_stands_in_the_prompt_is_context_only() -> None:
    row = {"prompt": [ASKED, SAID, ASKED], "completion": "four"}
    found = conversation(row)
    assert (found.answers, found.trained) == ((1, 3), (3,))


def test_sharegpt_with_tools_becomes_tool_calls() -> None:
    row = {
        "system": "Use tools.",
        "tools": json.dumps([{"type": "function", "function": {"name": "look"}}]),
        "conversations": [
            {"from": "human", "value": "What is there?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "it"}}'},
            {"from": "observation", "value": "a box"},
            {"from": "gpt", "value": "A box."},
        ],
    }
    found = conversation(row)
    assert [m["role"] for m in found.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert found.messages[2]["tool_calls"] == [
        {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    ]
    assert found.tools == ({"type": "function", "function": {"name": "look"}},)


def test_what_arrow_adds_is_left_out(tmp_path: Path) -> None:
    from datasets import Dataset

    call = {"id": "1", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    rows = [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]},
    ]
    dataset = Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset.save_to_disk(tmp_path / "saved")
    expected = conversations(rows)
    assert expected[0].messages == (ASKED, SAID)
    for source in (dataset, *(tmp_path / name for name in ("rows.parquet", "rows.jsonl", "saved"))):
        assert conversations(source) == expected


def test_parts_of_text_are_one_text_and_images_are_refused() -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2 ="}]
    row = {"messages": [{"role": "user", "content": parts}, SAID]}
    assert conversation(row).messages[0]["content"] == "2 + 2 ="
    parts[0] = {"type": "image", "url": "x.png"}
    with pytest.raises(UsageError, match="only text is read"):
        conversation(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, r"\(found: \['text'\]\)"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["hi"]}, "a message must be"),
        ({"messages": [{"role": "user"}]}, "needs a 'role' and a 'content'"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
        ({"messages": [ASKED]}, "no message has the role 'assistant'"),
        ({"messages": [SAID, ASKED]}, "the assistant speaks first"),
        ({"messages": [ASKED, {**SAID, "content": " "}]}, "message 2, the assistant's, is empty"),
        ({"messages": [ASKED, {**SAID, "weight": 0}]}, "has the weight 0"),
        ({"conversations": [{"from": "x", "value": ""}]}, "unknown speaker 'x'"),
        ({"messages": [ASKED, SAID], "tools": "{oops"}, "'tools' is not JSON"),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "a tool call needs a 'function'",
        ),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"the data, row 2: .*{message}"):
        conversations([{"messages": [ASKED, SAID]}, row])


def test_the_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the data holds no rows"):
        read_rows([])
    with pytest.raises(UsageError, match=r"no such data file: nowhere\.jsonl"):
        read_rows("nowhere.jsonl")
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"messages": []}\n{oops\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2: not JSON"):
        read_rows(broken)
    with pytest.raises(UsageError, match="row 1: not columns but str"):
        read_rows(["hello"])
