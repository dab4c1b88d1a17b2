"""Every generator against a real vLLM (``posttrain serve``), with a model that writes nonsense.

The model is random, exported in four bits. So what is proven is what a scripted server cannot: that
vLLM takes each generator's requests, that its replies are read and counted, whatever they say, and
that nothing is asked twice. That the export is served at all, with its tool calls, too.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

import data_gen
from data_gen.cli import main
from tests.served import serving

pytestmark = pytest.mark.slow
MODEL = "small"
DOCUMENTS = ["The tower of Ulm is 161 metres high.", "A court in Lyon sat for nine days."]
LOOK = {
    "name": "look",
    "description": "Looks at a thing.",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": LOOK}]
SEED = {"instruction": "Name a tower.", "input": "", "output": "The one of Ulm."}
SUMS = "reasoning_gym:chain_sum"
FACTS = {"name": "Aster", "developer": "Aster Labs"}
CALLS = {
    "rejection": lambda at, out: data_gen.rejection_sample(
        SUMS, at, out, n_tasks=3, samples=2, max_tokens=8, quiet=True, keep="finished"
    ),
    "preferences": lambda at, out: data_gen.preferences(
        SUMS, at, out, n_tasks=3, samples=2, max_tokens=8, quiet=True
    ),
    "self-instruct": lambda at, out: data_gen.self_instruct(
        [SEED], at, out, n=2, per_round=2, max_rounds=2, **SHORT
    ),
    "constitutional": lambda at, out: data_gen.constitutional(["Hello."], at, out, **SHORT),
    "boundary": lambda at, out: data_gen.knowledge_boundary(DOCUMENTS, at, out, **SHORT),
    "identity": lambda at, out: data_gen.identity(FACTS, at, out, n=3, **SHORT),
    "agentic": lambda at, out: data_gen.agentic([{"tools": TOOLS}], at, out, **SHORT),
    "rephrase": lambda at, out: data_gen.rephrase(DOCUMENTS, at, out, **SHORT),
    "evolve": lambda at, out: data_gen.evolve(["Name a tower."], at, out, **SHORT),
    "magpie": lambda at, out: data_gen.magpie(at, out, n=3, question_tokens=8, **SHORT),
    "questions": lambda at, out: data_gen.questions(DOCUMENTS, at, out, **SHORT),
    "back-translate": lambda at, out: data_gen.back_translate(DOCUMENTS, at, out, **SHORT),
    "personas": lambda at, out: data_gen.personas(DOCUMENTS, at, out, **SHORT),
}
SHORT = {"max_tokens": 8, "quiet": True}


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """The random model with a longer window, exported in four bits and served by vLLM."""
    pytest.importorskip("vllm")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.export.export import Wishes, export

    folder = tmp_path_factory.mktemp("live")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, max_position_embeddings=4096)
    model.save_pretrained(folder / "long")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder / "long")
    made = export(folder / "long", folder / MODEL, Wishes(quantize="int4"))
    with serving(made.path, "--engine", "vllm", "--kv-cache-gib", "0.2") as (url, _):
        yield data_gen.Server(url, MODEL, concurrency=16)


@pytest.mark.parametrize("name", CALLS)
def test_a_generator_counts_every_reply_and_asks_nothing_twice(
    server, tmp_path: Path, name
) -> None:
    out = tmp_path / "out"
    first = CALLS[name](server, out).to_list()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["items_failed"] == 0, summary["failures"]
    assert summary["kept"] == len(first)
    assert summary["kept"] + sum(summary["dropped"].values()) >= summary["items"] >= 1
    asked = summary["requests"]
    assert asked["replies"] == asked["requests"] == asked["asked"] >= summary["items"]
    assert asked["prompt_tokens"] > 0 and asked["completion_tokens"] > 0
    assert CALLS[name](server, out).to_list() == first
    assert json.loads((out / "summary.json").read_text())["requests"] == {}


def test_a_prompt_over_the_window_fails_its_item_alone(server, tmp_path: Path) -> None:
    long = ["What is it? " * 1000, "Hello."]
    data_gen.constitutional(long, server, tmp_path / "out", **SHORT)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    ((reason, times),) = summary["failures"].items()
    assert times == 1
    assert "refuses the request" in reason and "4096" in reason


def test_the_command_makes_a_data_set(server, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    address = f'servers=[{{url = "{server.url}", model = "{MODEL}"}}]'
    options = [address, f"out={out}", "n=2", "max_tokens=8", "question_tokens=8", "quiet=true"]
    assert main(["magpie", *options]) == 0
    assert f"rows in {out}" in capsys.readouterr().out


def test_tools_reach_the_model_and_a_request_with_them_is_taken(server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Look."}], "max_tokens": 4}
    used = []
    for more in ({}, {"tools": TOOLS}):
        answer = httpx.post(f"{server.url}/chat/completions", json=body | more, timeout=60)
        assert answer.status_code == 200, answer.text
        used.append(answer.json()["usage"]["prompt_tokens"])
    assert used[1] > used[0] + len("look")
