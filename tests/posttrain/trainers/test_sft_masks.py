"""Loss lies on exactly what the assistant writes, with the templates of every family."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import UsageError
from posttrain.trainers.conversations import Conversation, conversation
from posttrain.trainers.masks import Renderer, render
from pretrain.tokenizer import CHAT_TEMPLATE
from tests.posttrain.trainers.chat_families import FAMILIES, tokenizer_of

# What follows an answer and what stands before it, as far as the model writes it.
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "<|endoftext|>",
    "deepseek-r1": "<|endoftext|>",
    "gpt-oss": "<|return|>",
    "phi": "<|end|>",
    "deepseek-v3": "<|endoftext|>",
}
TRIMS = {"llama3", "gemma", "mistral"}
CHANNEL = "<|channel|>final<|message|>"
EMPTY = "<think>\n\n</think>\n\n"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def learnt(template: str, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    """The text of every run of trained tokens."""
    tools = options.pop("tools", None)
    tokenizer = tokenizer_of(template)
    rendered = Renderer(tokenizer, **options)(conversation({"messages": messages, "tools": tools}))
    runs: list[list[int]] = []
    before = 0
    for token, on in zip(rendered.token_ids, rendered.trained, strict=True):
        if on:
            runs += [] if before else [[]]
            runs[-1].append(token)
        before = on
    return [tokenizer.decode(run) for run in runs]


def written(family: str, text: str) -> str:
    """What the model has to write for this answer, the last one, without a thought."""
    said = text.strip() if family in TRIMS else text
    lead = {"mistral": " ", "qwen3": EMPTY, "gpt-oss": CHANNEL}.get(family, "")
    return lead + said + ENDS[family]


SAID = st.text("abc .\n<>[]é漢", min_size=1, max_size=12).filter(lambda text: text.strip())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(question=SAID, first=SAID, second=SAID, system=SAID)
def test_exactly_the_answers_are_learnt(
    family: str, question: str, first: str, second: str, system: str
) -> None:
    turns = [user(question), assistant(first), user(first), assistant(second)]
    earlier = written(family, first).removeprefix(EMPTY).replace("<|return|>", "<|end|>")
    expected = [earlier, written(family, second)]
    assert learnt(family, turns) == expected
    assert learnt(family, [{"role": "system", "content": system}, *turns]) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_the_whole_rendering(family: str) -> None:
    tokenizer = tokenizer_of(family)
    turns = [user("What?"), assistant("Paris."), user("Is it?"), assistant("yes")]
    ids, trained = render(tokenizer, conversation({"messages": turns}))
    assert ids == tokenizer.apply_chat_template(turns)["input_ids"]
    assert len(trained) == len(ids)
    assert Renderer(tokenizer).ends_turns()


def test_markers_of_the_template_say_the_same() -> None:
    turns = [user("2 + 2 ="), assistant("4"), user("1 ="), assistant("<think>1</think>1")]
    assert learnt(CHAT_TEMPLATE, turns) == ["4<|im_end|>", "<think>1</think>1<|im_end|>"]
    assert learnt(CHAT_TEMPLATE, turns) == learnt("chatml", turns)
    turns[1]["weight"] = 0  # markers know nothing of it
    assert learnt(CHAT_TEMPLATE, turns) == ["<think>1</think>1<|im_end|>"]


# thoughts

THINKING = [
    user("a"),
    assistant("<think>\nx\n</think>\n\nA"),
    user("b"),
    assistant("<think>\ny\n</think>\n\nB"),
]


@pytest.mark.parametrize(
    ("family", "thinking", "expected"),
    [
        ("chatml", "template", ["<think>\nx\n</think>\n\nA", "<think>\ny\n</think>\n\nB"]),
        ("qwen3", "template", ["A", "<think>\ny\n</think>\n\nB"]),
        ("deepseek-r1", "template", ["\n\nA", "\n\nB"]),
        ("qwen3", "keep", ["<think>\nx\n</think>\n\nA", "<think>\ny\n</think>\n\nB"]),
        ("deepseek-r1", "keep", ["<think>\nx\n</think>\n\nA", "<think>\ny\n</think>\n\nB"]),
        ("llama3", "drop", ["A", "B"]),
        ("qwen3", "drop", ["A", f"{EMPTY}B"]),
        ("deepseek-r1", "drop", ["A", "B"]),
    ],
)
def test_thoughts_are_kept_or_dropped(family: str, thinking: Any, expected: list[str]) -> None:
    ended = [text + ENDS[family] for text in expected]
    assert learnt(family, THINKING, thinking=thinking) == ended


@pytest.mark.parametrize(("family", "left_out"), [("chatml", 0), ("qwen3", 1), ("deepseek-r1", 2)])
def test_thoughts_that_a_template_drops_are_counted(family: str, left_out: int) -> None:
    rendered = Renderer(tokenizer_of(family))(conversation({"messages": THINKING}))
    assert rendered.unthinking == left_out


def test_thoughts_in_a_field_of_their_own() -> None:
    turns = [user("a"), assistant("A", reasoning_content="x")]
    assert learnt("qwen3", turns) == ["<think>\nx\n</think>\n\nA<|im_end|>"]
    assert learnt("chatml", turns) == ["A<|im_end|>"]
    assert learnt("chatml", turns, thinking="keep") == ["<think>\nx\n</think>\n\nA<|im_end|>"]


def test_variables_reach_the_template() -> None:
    """The prompt of a model that is told not to think holds the empty thought already."""
    turns = [user("a"), assistant("A")]
    assert learnt("qwen3", turns, variables={"enable_thinking": False}) == ["A<|im_end|>"]


# tools

CALL = {"id": "1", "function": {"name": "look", "arguments": {"at": "it"}}}
USING = [
    user("a"),
    assistant("", tool_calls=[CALL]),
    {"role": "tool", "content": "a box", "tool_call_id": "1"},
    assistant("A box."),
]
LOOK = [{"type": "function", "function": {"name": "look"}}]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama3", '{"name": "look", "parameters": {"at": "it"}}<|eot_id|>'),
        (
            "deepseek-v3",
            '<calls><call>look<args>{"at": "it"}</call></calls><|endoftext|>',
        ),
        ("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "it"}}]<|endoftext|>'),
        (
            "qwen3",
            '\n<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call><|im_end|>',
        ),
    ],
)
def test_tool_calls_are_learnt_and_results_are_not(family: str, expected: str) -> None:
    assert learnt(family, USING) == [expected, written(family, "A box.")]


def test_markers_are_proven_on_calls_too() -> None:
    """The same family with markers around what the assistant writes."""
    said = "{{- ' ' ~ m.content | trim ~ eos_token -}}"
    call = "{{- '[TOOL_CALLS] [' -}}"
    closed = "{{- ']' ~ eos_token -}}"
    marked = (
        FAMILIES["mistral"]
        .replace(said, "{%- generation -%}" + said + "{%- endgeneration -%}")
        .replace(call, "{%- generation -%}" + call)
        .replace(closed, closed + "{%- endgeneration -%}")
    )
    assert learnt(marked, USING) == learnt("mistral", USING)


def test_a_template_without_tools_is_refused() -> None:
    with pytest.raises(UsageError, match="does not show the tool 'look'"):
        learnt("chatml", USING)
    with pytest.raises(UsageError, match="does not show the tool 'look'"):
        learnt("gemma", [user("a"), assistant("b")], tools=LOOK)
    assert learnt("qwen3", [user("a"), assistant("b")], tools=LOOK) == [written("qwen3", "b")]


# templates that are refused

HEADER = "{{- '<|im_start|>' ~ m.role ~ '\\n' -}}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0].content }}", "message 2 appears 0 times"),
        (
            "{%- for m in messages -%}" + HEADER + "{{- m.content ~ m.content -}}{%- endfor -%}",
            "appears 2 times",
        ),
        (
            "{%- for m in messages -%}" + HEADER + "{{- m.content -}}{%- endfor -%}",
            "has no generation prompt",
        ),
        (
            "{{ messages[-1].content | length }}{%- for m in messages -%}"
            + HEADER
            + "{{- m.content ~ '<|im_end|>' -}}{%- endfor -%}"
            + PROMPT,
            "changes the text before or after its turn",
        ),
        (
            "{%- for m in messages -%}{%- generation -%}"
            + HEADER
            + "{{- m.content -}}{%- endgeneration -%}{%- endfor -%}",
            "message 1, which is not the assistant's, is trained on",
        ),
        (
            "{%- for m in messages -%}"
            + HEADER
            + "{{- m.content -}}{%- generation -%}{{- '<|im_end|>' -}}{%- endgeneration -%}"
            + "{%- endfor -%}",
            "message 2, the assistant's, is not trained on whole",
        ),
    ],
)
def test_what_cannot_be_masked_safely_says_why(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"can't be masked safely: .*{why}"):
        learnt(template, [user("a"), assistant("b" * 12)])


def test_a_refusal_of_the_template_shows_the_conversation() -> None:
    with pytest.raises(UsageError, match=r"roles must alternate.*user: 'one'; user: 'two'"):
        learnt("gemma", [user("one"), user("two"), assistant("b")])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        Renderer(tokenizer)


def test_a_template_that_never_ends_a_turn_is_told() -> None:
    template = (
        "{%- for m in messages -%}" + HEADER + "{{- m.content ~ '\\n' -}}{%- endfor -%}" + PROMPT
    )
    renderer = Renderer(tokenizer_of(template))
    assert not renderer.ends_turns()
    assert sum(renderer(Conversation((user("a"), assistant("b")))).trained) == 1
