"""What a request may say: a wrong field is refused by its name, what asks for nothing passes."""

import pytest

from posttrain.serving.protocol import ChatRequest, RequestError, TextRequest, read

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"seed": "x"}, "seed"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"3": 5}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"colour": "red"}, "colour"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_field_is_named(wrong, param):
    with pytest.raises(RequestError) as raised:
        read(ChatRequest, CHAT | wrong)
    assert raised.value.status == 400
    named = param or "messages.0.content"
    assert raised.value.param.startswith(named)
    assert str(raised.value).startswith(named)


def test_a_body_that_is_no_object_is_refused():
    with pytest.raises(RequestError, match="body"):
        read(TextRequest, [1])


def test_what_asks_for_nothing_passes():
    neutral = {"user": "me", "metadata": {}, "frequency_penalty": 0, "tools": [], "stop": None}
    neutral |= {"best_of": 1, "response_format": {"type": "text"}, "temperature": None}
    assert read(TextRequest, TEXT | neutral) == read(TextRequest, TEXT)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_the_four_kinds_of_prompt(prompt):
    assert read(TextRequest, TEXT | {"prompt": prompt}).prompt == prompt


def test_stop_is_one_or_several():
    assert read(ChatRequest, CHAT | {"stop": "a"}).stop == ["a"]
    assert read(ChatRequest, CHAT | {"stop": ["a", "b"]}).stop == ["a", "b"]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = read(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert request.messages[0].text == "ab"


def test_an_answer_may_be_sent_back_as_it_came():
    answer = {"role": "assistant", "content": "a", "refusal": None, "annotations": []}
    request = read(ChatRequest, {"model": "m", "messages": [answer, *CHAT["messages"]]})
    assert request.messages[0].text == "a"
    with pytest.raises(RequestError, match=r"messages\.0\.tool_calls is not supported"):
        read(ChatRequest, {"model": "m", "messages": [answer | {"tool_calls": [{}]}]})
