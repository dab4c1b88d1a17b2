"""`posttrain serve` on both engines, asked by OpenAI's own client: the same tests for each.

What is served has gone the whole way: an adapter trained on a checkpoint, merged, exported, loaded
by the engine. Greedy answers are those of the training model.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.chat import Chat
from posttrain.export.export import Wishes, export

ENGINES = ["embedded", pytest.param("vllm", marks=pytest.mark.slow)]
TOKENS = 12
QUESTIONS = [f"what is {i} + {(7 * i) % 50} ?" for i in range(50)]
KEY = "not a secret"


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """(the training model: base and adapter in float32, its folder)."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module")
def exported(trained, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "small"
    return export(trained[1], out, Wishes(base=str(checkpoint), dtype="float32")).path


@pytest.fixture(scope="module", params=ENGINES)
def server(request, exported, serve):
    """(URL, engine) of one server for all tests of the file; it asks for a key."""
    if request.param == "vllm":
        pytest.importorskip("vllm")
    options = ["--engine", request.param, "--kv-cache-gib", "0.1"]
    with serve(exported, *options, env={"POSTTRAIN_API_KEY": KEY}) as (url, _):
        yield url, request.param


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server[0], api_key=KEY, max_retries=0, timeout=60)


def chat(client, text, **more):
    messages = [{"role": "user", "content": text}]
    defaults = {"model": "small", "max_tokens": TOKENS, "temperature": 0}
    return client.chat.completions.create(messages=messages, **(defaults | more))


@torch.inference_mode()
def greedy(model, prompt, ends):
    """The training model's own answer, without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + TOKENS:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def test_greedy_tokens_are_the_training_models_on_fifty_prompts(server, trained, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    template = Chat(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": q}]).tolist() for q in QUESTIONS]
    wanted = [greedy(trained[0], prompt, template.stop_token_ids) for prompt in prompts]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server[0], api_key=KEY, timeout=120) as client:
            return await asyncio.gather(
                *(chat(client, q, extra_body={"return_token_ids": True}) for q in QUESTIONS)
            )

    answers = asyncio.run(ask_all())
    same = 0
    for answer, ids, prompt in zip(answers, wanted, prompts, strict=True):
        (choice,) = answer.choices
        told = choice.token_ids
        same += told == ids
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == len(told)
        if choice.finish_reason == "length":
            assert len(told) == TOKENS
    assert same == len(QUESTIONS)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_joins_to_the_text_that_comes_at_once(client, temperature):
    for question in QUESTIONS[:5]:
        settings = {"temperature": temperature, "seed": 5}
        whole = chat(client, question, **settings)
        chunks = list(
            chat(client, question, stream=True, stream_options={"include_usage": True}, **settings)
        )
        said = [c.choices[0] for c in chunks if c.choices]
        assert "".join(c.delta.content or "" for c in said) == whole.choices[0].message.content
        assert said[-1].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert len({c.id for c in chunks}) == 1


def test_completions_stream_too_and_count_several_choices(client):
    settings = {"model": "small", "prompt": "1 + 2", "max_tokens": 6, "n": 3, "seed": 1}
    whole = client.completions.create(**settings)
    texts = [choice.text for choice in whole.choices]
    assert len(set(texts)) == 3  # each has a seed of its own
    assert whole.usage.completion_tokens == sum(
        6 if choice.finish_reason == "length" else whole.usage.completion_tokens - 12
        for choice in whole.choices
    ) or any(choice.finish_reason == "stop" for choice in whole.choices)
    streamed = ["", "", ""]
    for chunk in client.completions.create(stream=True, **settings):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_a_seed_repeats_and_another_differs(client):
    def text(seed):
        return chat(client, QUESTIONS[0], temperature=1, seed=seed).choices[0].message.content

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(2, 8)}) > 1


def test_a_stop_string_ends_and_is_left_out(client):
    free = chat(client, QUESTIONS[1]).choices[0].message.content
    stop = free[3:5]
    cut = chat(client, QUESTIONS[1], stop=stop).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == free[: free.index(stop)]
    streamed = chat(client, QUESTIONS[1], stop=stop, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
    assert "".join(pieces) == cut.message.content


def test_log_probs_and_alternatives(client):
    entry = chat(client, QUESTIONS[2], logprobs=True, top_logprobs=3).choices[0].logprobs.content[0]
    best = entry.top_logprobs
    assert len(best) == 3 and best[0].token == entry.token
    assert [one.logprob for one in best] == sorted((one.logprob for one in best), reverse=True)
    assert entry.logprob == pytest.approx(best[0].logprob)
    legacy = client.completions.create(
        model="small", prompt="1 + 2", max_tokens=3, temperature=0, logprobs=2
    )
    told = legacy.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == 3
    assert max(told.top_logprobs[0].values()) == pytest.approx(told.token_logprobs[0])


def test_top_p_leaves_the_likeliest_only(client):
    likeliest = chat(client, QUESTIONS[3]).choices[0].message.content
    for seed in range(3):
        cut = chat(client, QUESTIONS[3], temperature=1, top_p=1e-6, seed=seed)
        assert cut.choices[0].message.content == likeliest


@pytest.mark.parametrize(
    ("wrong", "status", "named"),
    [
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 2}, 400, "top_p"),
        ({"model": "other"}, 404, "other"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "1 + 2 " * 200}]}, 400, "token"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server, wrong, status, named):
    body = {"model": "small", "messages": [{"role": "user", "content": "1"}]} | wrong
    response = post(server, body)
    assert response.status_code == status
    error = response.json()["error"]
    assert named in error["message"]
    assert {"message", "type", "param", "code"} <= error.keys()


def post(server, body, path="/chat/completions", key=KEY, **more):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(server[0] + path, json=body, headers=headers, timeout=60, **more)


def test_only_four_routes_and_only_with_the_key(server):
    root = server[0].removesuffix("/v1")
    assert httpx.get(root + "/health").status_code == 200
    assert httpx.get(server[0] + "/models").status_code == 401
    assert post(server, {}, key="wrong").status_code == 401
    with_key = {"Authorization": f"Bearer {KEY}"}
    models = httpx.get(server[0] + "/models", headers=with_key).json()
    assert [model["id"] for model in models["data"]] == ["small"]
    for path in ("/docs", "/openapi.json", "/metrics", "/tokenize", "/invocations", "/version"):
        assert httpx.get(root + path, headers=with_key).status_code == 404
    for path in ("/inference/v1/generate", "/v1/load_lora_adapter", "/collective_rpc", "/pause"):
        assert httpx.post(root + path, json={}, headers=with_key).status_code == 404


def test_a_body_beyond_the_limit_is_refused(server):
    assert post(server, {"messages": "x" * (4 * 2**20)}).status_code == 413


def test_nobody_is_held_up_by_a_client_that_leaves(server, client):
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "1"}],
        "stream": True,
        "n": 8,
    }
    with contextlib.suppress(httpx.ReadTimeout):
        for _ in range(20):
            with httpx.stream(
                "POST", server[0] + "/chat/completions", json=body, headers=headers
            ) as response:
                assert next(response.iter_lines()).startswith("data: ")
    assert chat(client, QUESTIONS[0]).choices[0].message.content is not None


def test_the_terminal_talks_to_it(server):
    lines = "what is 1 + 2 ?\n/temperature 0\nand 3 ?\n"
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.cli", "chat", server[0], "--max-tokens", "5"],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"POSTTRAIN_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    # A rate needs two pieces of text with time between them, which is the server's to decide.
    assert len(re.findall(r"\[\d tokens?, .*\d s", done.stderr)) == 2
    assert "temperature: 0" in done.stderr
