"""Longer contexts: what is written, by hand, and a small model that finds needles again."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.cli import main
from pretrain.context import (
    document_perplexity,
    extend_config,
    needle_accuracy,
    passkey,
    window,
)
from pretrain.errors import UsageError
from pretrain.models import Shape
from pretrain.models.build import model_config

# the config


def config_of(window_: int = 64, theta: float = 10_000.0, **rope: Any) -> Any:
    sizes = {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 128}
    config = model_config(Shape("qwen3", 16, max_length=window_, **sizes))
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta} | rope
    return config


def test_yarn_counts_from_the_length_of_pretraining_also_the_second_time() -> None:
    config = config_of()
    extend_config(config, 128)
    extend_config(config, 256)
    assert config.rope_parameters == {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    assert window(config) == config.max_position_embeddings == 256


def test_linear_keeps_the_length_that_engines_multiply() -> None:
    config = config_of()
    extend_config(config, 128, method="linear")
    extend_config(config, 256, method="linear")
    assert config.rope_parameters["factor"] == 4.0
    assert isinstance(config.rope_parameters["factor"], float)
    assert config.max_position_embeddings == 64
    assert window(config) == 256


def test_abf_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    config = config_of()
    extend_config(config, 256, method="abf")
    base = config.rope_parameters["rope_theta"]
    assert base == pytest.approx(10_000 * 4 ** (32 / 30))
    slowest = base ** (-30 / 32) / 10_000 ** (-30 / 32)
    assert slowest == pytest.approx(1 / 4)
    assert config.rope_parameters["rope_type"] == "default"
    by_hand = config_of()
    extend_config(by_hand, 256, method="abf", base=500_000.0)
    assert by_hand.rope_parameters["rope_theta"] == 500_000.0


def test_only_layers_that_see_everything_are_rescaled() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(max_position_embeddings=1024)
    local = dict(config.rope_parameters["sliding_attention"])
    extend_config(config, 4096)
    assert config.rope_parameters["sliding_attention"] == local
    assert config.rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert config.rope_parameters["full_attention"]["factor"] == 4.0


@pytest.mark.parametrize(
    ("rope", "arguments", "message"),
    [
        ({}, {"length": 64}, "window is 64 tokens already"),
        ({}, {"length": 128, "method": "ntk"}, "no method 'ntk': there are yarn, abf, linear"),
        ({}, {"length": 128, "base": 1e6}, "--base belongs to abf"),
        ({}, {"length": 128, "method": "abf", "base": 10.0}, "base is 10000 now"),
        ({"rope_type": "linear", "factor": 2.0}, {"length": 256}, "by linear already"),
        ({"rope_type": "linear", "factor": 2.0}, {"length": 100, "method": "linear"}, "128 tokens"),
    ],
)
def test_what_cannot_be_extended_is_refused(
    rope: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    config = config_of(**rope)
    before = copy.deepcopy(config.to_dict())
    with pytest.raises(UsageError, match=message):
        extend_config(config, **arguments)
    assert config.to_dict() == before


def test_a_model_without_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config

    with pytest.raises(UsageError, match="no rotary positions"):
        extend_config(GPT2Config(), 4096)


# measuring


class Certain(torch.nn.Module):
    """Gives the token after the current one ``odds`` times the weight of each other."""

    device = torch.device("cpu")

    def __init__(self, odds: float, vocabulary: int = 10) -> None:
        super().__init__()
        self.odds, self.vocabulary = odds, vocabulary

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: object) -> Any:
        following = torch.nn.functional.one_hot((input_ids + 1) % self.vocabulary, self.vocabulary)
        logits = following.float() * math.log(self.odds)
        return type("Output", (), {"logits": logits[:, -logits_to_keep:]})


def test_perplexity_by_hand() -> None:
    counting = [i % 10 for i in range(21)]
    parts = document_perplexity(Certain(91.0), [counting, [1, 2]], 21, parts=2)  # type: ignore[arg-type]
    assert parts == pytest.approx([100 / 91] * 2)  # 91 of 91 + 9
    half = [*range(10), *[0] * 10, 0]
    # ten right steps of 91 %, and ten of 1 %; of which the first after 9 is right
    good, bad = document_perplexity(Certain(91.0), [half], 21, parts=2)  # type: ignore[arg-type]
    assert (good, bad) == (pytest.approx(100 / 91), pytest.approx(100))
    with pytest.raises(UsageError, match="no document of 50 tokens: the longest has 21"):
        document_perplexity(Certain(2.0), [half], 50)  # type: ignore[arg-type]


def test_every_token_of_the_answer_counts() -> None:
    def counted(length: int, depth: float, rng: random.Random) -> tuple[list[int], list[int]]:
        return [0] * (length - 2), [1, 2] if depth < 0.5 else [1, 3]

    found = needle_accuracy(Certain(5.0), counted, 8, depths=(0.0, 1.0))  # type: ignore[arg-type]
    assert found == {0.0: 1.0, 1.0: 0.0}


def test_the_passkey_stands_at_its_depth_and_fits(checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    make = passkey(tokenizer)
    places = []
    for depth in (0.0, 0.5, 1.0):
        context, answer = make(2000, depth, random.Random(3))
        assert 1900 < len(context) + len(answer) <= 2000
        text, key = tokenizer.decode(context), tokenizer.decode(answer).strip()
        assert text.count(f"The pass key is {key}.") == 1
        assert text.endswith("What is the pass key? The pass key is")
        places.append(text.index(key) / len(text))
    assert places == sorted(places)
    assert places[0] < 0.15 < 0.4 < places[1] < 0.6 < 0.85 < places[2]
    with pytest.raises(UsageError, match="too few for a passkey"):
        make(100, 0.5, random.Random(3))


# a model of 80,000 weights that has learnt to say the value behind the mark, in 48 tokens

VALUES, MARK, QUESTION, VOCABULARY, SHORT = 8, 8, 9, 16, 48


def needle(length: int, depth: float, rng: random.Random) -> tuple[list[int], list[int]]:
    """Values and other tokens, among them one mark; which value follows it?"""
    n, value = length - 4, rng.randrange(VALUES)
    fill = [rng.choice((rng.randrange(VALUES), rng.randrange(10, VOCABULARY))) for _ in range(n)]
    at = round(depth * n)
    return [*fill[:at], MARK, value, *fill[at:], QUESTION], [value]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What is learnt does not depend on what ran in this process before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(model: Any, steps: int, lengths: range, rate: float, *, rows: int = 32) -> None:
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        length = rng.choice(lengths)
        made = [needle(length, rng.random(), rng) for _ in range(rows)]
        ids = torch.tensor([context + answer for context, answer in made])
        logits = model(input_ids=ids[:, :-1], logits_to_keep=1).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()


def found(model: Any, length: int) -> float:
    shares = needle_accuracy(model, needle, length, samples=10, seed=1)
    return sum(shares.values()) / len(shares)


def with_config(model: Any, config: Any) -> Any:
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture(scope="module")
def finder() -> Any:
    from transformers import Qwen3ForCausalLM

    # A base so small that even the slowest pair turns a fifth round within the window, as it does
    # for real bases and real windows.
    config = config_of(SHORT, theta=50.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5.0 if weight.ndim > 1 else 1.0)
    train(model, 250, range(8, SHORT + 1), 3e-3)
    return model


def test_needles_are_found_at_the_length_of_training_and_lost_beyond(finder: Any) -> None:
    assert found(finder, SHORT) >= 0.95
    assert found(finder, 2 * SHORT) <= 0.5
    assert found(finder, 4 * SHORT) <= 0.4


@pytest.mark.parametrize("method", ["yarn", "abf"])
def test_a_rescaled_model_finds_them_after_few_steps(finder: Any, method: str) -> None:
    config = copy.deepcopy(finder.config)
    extend_config(config, 4 * SHORT, method=method)
    extended = with_config(finder, config)
    assert found(extended, 2 * SHORT) >= 0.7  # before any step
    train(extended, 20, range(4 * SHORT, 4 * SHORT + 1), 1e-3, rows=16)
    assert found(extended, 4 * SHORT) >= 0.8
    assert found(extended, SHORT) >= 0.8


def test_the_same_steps_without_rescaling_do_not_help(finder: Any) -> None:
    same = with_config(finder, finder.config)
    train(same, 20, range(4 * SHORT, 4 * SHORT + 1), 1e-3, rows=16)
    assert found(same, 4 * SHORT) <= 0.5


# the command


def test_the_command_measures_writes_and_measures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    short = tmp_path / "short"
    assert main(["extend", str(source), str(short), "--length", "512", "--samples", "0"]) == 0
    text = tmp_path / "long.jsonl"
    text.write_text(json.dumps({"text": "what is 1 + 2 ? 3 " * 300}) + "\n")
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    arguments = ["extend", str(short), str(out), "--length", "1024", "--samples", "1"]
    arguments += ["--documents", str(text), "--json", str(numbers)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 512 -> 1,024 tokens by yarn" in printed
    rows = json.loads(numbers.read_text())
    assert [row["length"] for row in rows["before"]] == [512, 1024]
    assert [len(row["perplexity"]) for row in rows["after"]] == [4, 4]
    assert rows["before"][1]["perplexity"] != rows["after"][1]["perplexity"]
    assert AutoTokenizer.from_pretrained(out).model_max_length == 1024
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.rope_parameters["factor"] == 16.0  # of the 64 that it was made with
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    change = json.loads((out / "extend.json").read_text())
    assert change["window"] == [512, 1024]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out", "--length", "128"], "no config.json"),
        (["source", "out", "--length", "32", "--samples", "0"], "64 tokens already"),
        (["source", "source", "--length", "128", "--samples", "0"], "not empty"),
        (["source", "out", "--length", "128", "--documents", "none.txt"], "no such file"),
        (["source", "out", "--length", "128", "--samples", "-1"], "must not be negative"),
    ],
)
def test_wrong_input_writes_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "source")
    assert main(["extend", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
