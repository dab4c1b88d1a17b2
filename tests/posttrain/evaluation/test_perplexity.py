"""Perplexity against a case worked by hand, and against transformers' own logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli import main
from posttrain.errors import UsageError
from posttrain.evaluation.perplexity import Document, Window, measure, read_documents, windows
from posttrain.model.policy import Policy, load_policy

TEXTS = ["12 + 30 = 42. The answer is 42, for 12 and 30 make 42.", "Grüße: 7", "1"]


def test_windows_by_hand() -> None:
    # start 9, tokens 1..6, windows of 4 that move by 2: each token is scored once
    assert windows([1, 2, 3, 4, 5, 6], 9, 4, 2) == [
        Window([9, 1, 2, 3], 3),
        Window([2, 3, 4, 5], 2),
        Window([3, 4, 5, 6], 1),
    ]
    assert windows([1], 9, 4, 2) == [Window([9, 1], 1)]
    for n in range(1, 30):
        for stride in range(1, 5):
            pieces = windows(list(range(n)), -1, 5, stride)
            assert [t for one in pieces for t in one.ids[len(one.ids) - one.scored :]] == list(
                range(n)
            )
            assert all(len(one.ids) <= 5 for one in pieces)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[Policy, Any]:
    return load_policy(checkpoint, torch.float32).eval(), AutoTokenizer.from_pretrained(checkpoint)


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, ("f",)) for text in texts]


def test_a_model_that_knows_nothing(checkpoint: Path) -> None:
    """A head of zeros says 1/V of every token: perplexity V, and bits by counting."""
    policy = load_policy(checkpoint, torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        policy.head.weight.zero_()
    vocabulary = len(policy.head.weight)
    found = measure(policy, tokenizer, documents(TEXTS), window=16, stride=8)["total"]
    tokens = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    assert (found["documents"], found["tokens"], found["bytes"]) == (3, tokens, size)
    assert found["perplexity"] == pytest.approx(vocabulary, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(vocabulary) / size, rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(256, 128), (8, 3), (2, 1)])
def test_the_same_as_one_window_after_another(
    checkpoint: Path, loaded: tuple[Policy, Any], window: int, stride: int
) -> None:
    policy, tokenizer = loaded
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += len(ids)
        line = [start, *ids]
        done = 1
        end = min(window, len(line))
        while done < len(line):
            seen = line[max(0, end - window) : end]
            with torch.no_grad():
                logits = reference(torch.tensor([seen])).logits[0].double()
            logprobs = logits.log_softmax(-1)[torch.arange(len(seen) - 1), seen[1:]]
            nats -= float(logprobs[len(logprobs) - (end - done) :].sum())
            done, end = end, min(end + stride, len(line))
    found = measure(policy, tokenizer, documents(TEXTS), window=window, stride=stride)["total"]
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_files_and_languages_add_up(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text(TEXTS[0])
    languages = ("de", "en", "de")
    lines = zip(TEXTS, languages, strict=True)
    rows.write_text("".join(json.dumps({"text": t, "language": x}) + "\n" for t, x in lines))
    assert main(["perplexity", str(checkpoint), str(plain), str(rows), "--window", "16"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["window"], printed["stride"]) == (16, 8)
    files = printed["files"]
    assert set(files) == {str(plain), str(rows), "language: de", "language: en", "total"}

    def bits(label: str) -> float:
        return float(files[label]["bits_per_byte"] * files[label]["bytes"])

    assert bits("total") == pytest.approx(bits(str(plain)) + bits(str(rows)), rel=1e-9)
    assert bits(str(rows)) == pytest.approx(bits("language: de") + bits("language: en"), rel=1e-9)
    assert files["language: de"]["documents"] == 2


def test_what_cannot_be_measured_is_told(tmp_path: Path, loaded: tuple[Policy, Any]) -> None:
    empty, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    empty.write_text("")
    rows.write_text('{"body": "x"}\n')
    with pytest.raises(UsageError, match="holds no text"):
        read_documents([str(empty)])
    with pytest.raises(UsageError, match="row 0: no text under 'text'"):
        read_documents([str(rows)])
    with pytest.raises(UsageError, match="cannot be read"):
        read_documents([str(tmp_path / "c.txt")])
    with pytest.raises(UsageError, match="stride is from 1 to 7"):
        measure(*loaded, documents(["x"]), window=8, stride=8)
