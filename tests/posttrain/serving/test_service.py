"""What a request leaves open: the checkpoint decides, and what it can't have is refused."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.serving.protocol import ChatRequest, RequestError, TextRequest, read
from posttrain.serving.service import Defaults, Service

CHAT = {"model": "m", "messages": [{"role": "user", "content": "1 + 2"}]}


@pytest.fixture(scope="module")
def parts(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(
        checkpoint
    )


@pytest.fixture
def service(parts):
    return Service(*parts, "m", window=64, rows=4)


def asks(service, kind, body):
    return service.answer(read(kind, body))[1]


def test_defaults_are_the_checkpoints(parts):
    model, tokenizer = parts
    kept = model.generation_config
    model.generation_config = GenerationConfig(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1
    )
    try:
        service = Service(model, tokenizer, "m", window=64, rows=4)
    finally:
        model.generation_config = kept
    assert service.defaults.not_applied == ("repetition_penalty=1.1",)
    (own,) = asks(service, ChatRequest, CHAT)
    assert (own.request.sampling.temperature, own.top_p, own.top_k) == (0.6, 0.9, 20)
    (asked,) = asks(service, ChatRequest, CHAT | {"temperature": 0, "top_p": 1, "top_k": -1})
    assert (asked.request.sampling.temperature, asked.top_p, asked.top_k) == (0, 1, 0)
    assert Defaults.of(GenerationConfig()) == Defaults()


def test_lengths_and_ends(service, parts):
    (chat,) = asks(service, ChatRequest, CHAT)
    prompt = chat.request.prompt_ids
    assert chat.request.sampling.max_tokens == 64 - len(prompt)  # all the window has
    assert chat.request.sampling.stop_token_ids[:2] == (3, 0)
    (text,) = asks(service, TextRequest, {"model": "m", "prompt": [5, 6]})
    assert text.request.prompt_ids.tolist() == [5, 6]
    assert text.request.sampling.max_tokens == 16


def test_seeds_differ_between_choices_and_are_drawn_where_none_is_given(service):
    given = asks(service, ChatRequest, CHAT | {"n": 3, "seed": 7})
    assert [ask.request.seed for ask in given] == [7, 8, 9]
    assert asks(service, ChatRequest, CHAT | {"seed": -1})[0].request.seed == 2**63 - 1
    drawn = {asks(service, ChatRequest, CHAT)[0].request.seed for _ in range(4)}
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [([], "empty"), ([300_000], "not one of"), ([-1], "not one of"), ([5] * 64, "no room")],
)
def test_a_prompt_that_can_not_be_computed_is_refused(service, prompt, reason):
    with pytest.raises(RequestError, match=reason) as raised:
        asks(service, TextRequest, {"model": "m", "prompt": prompt})
    assert (raised.value.status, raised.value.param) == (400, "prompt")


def test_what_the_template_refuses_is_the_requests_fault(service):
    with pytest.raises(RequestError, match="unknown role: pirate"):
        asks(service, ChatRequest, CHAT | {"messages": [{"role": "pirate", "content": "arr"}]})


def test_without_a_template_there_are_completions_only(parts):
    model, tokenizer = parts
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        service = Service(model, tokenizer, "m", window=64, rows=4)
        with pytest.raises(RequestError, match="no chat template.*/v1/completions"):
            asks(service, ChatRequest, CHAT)
        (ask,) = asks(service, TextRequest, {"model": "m", "prompt": "1 + 2"})
    finally:
        tokenizer.chat_template = template
    assert ask.request.sampling.stop_token_ids == (0, 3)[: len(ask.request.sampling.stop_token_ids)]
    assert np.array_equal(ask.request.prompt_ids, tokenizer.encode("1 + 2"))
