"""Tool calls as the four families write them: read, or reported, never lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tool_formats import FORMATS, MAX_CALLS, format_of, parse

ADD = ("add", {"a": 1, "b": [2, "x"]})
RIGHT = [
    (
        "hermes",
        'So.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}\n</tool_call>',
    ),
    (
        "hermes",
        'So.<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2, \\"x\\"]}"}'
        "</tool_call>",
    ),
    ("llama3", '{"name": "add", "parameters": {"a": 1, "b": [2, "x"]}}'),
    ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": [2, "x"]}}'),
    ("mistral", 'So.[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}]'),
    ("mistral", 'So.[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, "x"]}'),
    ("mistral", 'So.[TOOL_CALLS]add{"a": 1, "b": [2, "x"]}'),
    (
        "deepseek",
        "So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        '{"a": 1, "b": [2, "x"]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    (
        "deepseek",
        'So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": [2, "x"]}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
]


@pytest.mark.parametrize(("form", "text"), RIGHT)
def test_a_call_is_read(form: str, text: str) -> None:
    found = parse(text, FORMATS[form])
    assert [(call.name, call.arguments) for call in found.calls] == [ADD]
    assert found.invalid == ()
    assert found.text == ("" if form == "llama3" else "So.")


@pytest.mark.parametrize(
    ("form", "text", "n"),
    [
        ("hermes", '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * 2, 2),
        ("llama3", '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}', 2),
        ("mistral", '[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b"}]', 2),
        ("mistral", "[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[ARGS]{}", 2),
        (
            "deepseek",
            "<｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>\n"
            "<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
            2,
        ),
    ],
)
def test_several_calls_are_read_in_order(form: str, text: str, n: int) -> None:
    found = parse(text, FORMATS[form])
    assert len(found.calls) == n
    assert not found.invalid


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", '<tool_call>{"name": "a", "arguments": {}'),
        ("hermes", "<tool_call>add(1, 2)</tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>'),
        ("llama3", '<|python_tag|>{"name": "a", "parameters": {'),
        ("mistral", '[TOOL_CALLS][{"name": "a"'),
        ("mistral", "[TOOL_CALLS]a[ARGS]{"),
        ("mistral", "[TOOL_CALLS]12"),
        ("deepseek", "<｜tool▁call▁begin｜>a<｜tool▁sep｜>{}"),
        ("deepseek", "<｜tool▁call▁begin｜>a{}<｜tool▁call▁end｜>"),
    ],
)
def test_a_call_that_could_not_be_run_is_reported(form: str, text: str) -> None:
    found = parse(text, FORMATS[form])
    assert found.calls == ()
    assert len(found.invalid) == 1


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("text", ["", "42", "The sum {of} it all is 3.", '{"answer": 3}', "[1, 2]"])
def test_plain_text_is_an_answer(form: str, text: str) -> None:
    found = parse(text, FORMATS[form])
    assert (found.text, found.calls, found.invalid) == (text.strip(), (), ())


def test_a_call_inside_the_thinking_is_no_call() -> None:
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    found = parse(f"<think>{call}</think>{call}", FORMATS["hermes"])
    assert len(found.calls) == 1
    assert found.text == f"<think>{call}</think>"
    assert parse(f"<think>{call}", FORMATS["hermes"]).calls == ()


def test_only_so_many_are_run() -> None:
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    found = parse(call * (MAX_CALLS + 3), FORMATS["hermes"])
    assert len(found.calls) == MAX_CALLS
    assert found.invalid == (f"{MAX_CALLS + 3} calls at once, at most {MAX_CALLS} are run",)


PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "{",
        "}",
        "[",
        "]",
        '"name"',
        ":",
        "a",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<|python_tag|>",
        ";",
        "<think>",
    ]
)


@given(st.lists(PIECES, max_size=30), st.sampled_from(list(FORMATS)))
def test_no_text_raises(pieces: list[str], form: str) -> None:
    parse("".join(pieces), FORMATS[form])


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("... <tool_call> ...", "hermes"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("<｜tool▁call▁begin｜>", "deepseek"),
        ('<|python_tag|> {"name": ..., "parameters": ...}', "llama3"),
        ("{{ messages[0].content }}", None),
    ],
)
def test_the_template_tells_the_format(template: str, name: str | None) -> None:
    found = format_of(template)
    assert (found.name if found else None) == name
