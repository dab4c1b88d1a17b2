"""The size dial: counts that are exact, sizes that only grow, models that repeat themselves."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.cli import main
from pretrain.errors import UsageError
from pretrain.models import ARCHITECTURES, Shape, build, count, parse_size, shape_for, table
from pretrain.models.build import model_config

SIZES = ("width", "layers", "heads", "kv_heads", "head_dim", "ffn", "expert_ffn")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_count_is_that_of_the_built_model(architecture: str) -> None:
    shape = shape_for("3M", architecture=architecture, vocab_size=640)
    model = build(shape)
    counted = count(shape)
    assert counted.total == sum(weight.numel() for weight in model.parameters())
    assert counted.total == sum(counted.parts.values())
    assert counted.parts["embedding"] == 640 * shape.width
    assert model.config.get_text_config().head_dim % 32 == 0


def test_an_untied_model_has_a_second_matrix() -> None:
    sizes = {"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 96}
    shape = Shape("llama", 100, tied=False, **sizes)
    assert count(shape).total == sum(weight.numel() for weight in build(shape).parameters())
    # attention 64 x 32 x (2 x 2 + 2), feed-forward 3 x 64 x 96, norms 3 x 64, matrices 2 x 6400
    assert count(shape).total == 12_288 + 18_432 + 192 + 12_800


def test_flops_by_hand() -> None:
    sizes = {"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 96}
    counted = count(Shape("llama", 100, max_length=10, **sizes))
    # every matrix twice, the tied one as the output; attention 4 x 1 x 2 x 32 x 10
    assert counted.flops_forward == 2 * (12_288 + 18_432 + 6_400) + 2_560
    assert counted.flops_training == 3 * counted.flops_forward


def test_a_token_meets_one_dense_ffn_of_a_mixture() -> None:
    shape = shape_for("125M", architecture="qwen3_moe", vocab_size=8192)
    assert shape.experts_per_token * shape.expert_ffn >= 3 * shape.width
    assert shape.experts_per_token * shape.expert_ffn < 3 * shape.width + 32 * 8
    counted = count(shape)
    asleep = (64 - 8) * shape.layers * 3 * shape.width * shape.expert_ffn
    assert counted.active == counted.total - asleep
    assert (
        count(shape_for("1B", vocab_size=8192)).active
        == count(shape_for("1B", vocab_size=8192)).total
    )


@settings(max_examples=40)
@given(st.sampled_from(ARCHITECTURES), st.lists(st.floats(6, 11), min_size=2, max_size=6))
def test_nothing_shrinks_when_the_dial_goes_up(architecture: str, exponents: list[float]) -> None:
    shapes = [
        shape_for(10**one, architecture=architecture, vocab_size=1024) for one in sorted(exponents)
    ]
    for shape in shapes:
        model_config(shape)  # transformers validates it
    for small, large in pairwise(shapes):
        for name in SIZES:
            assert getattr(small, name) <= getattr(large, name), name
        assert count(small).total <= count(large).total


@pytest.mark.parametrize("size", ["10M", "125M", "1B", "8B", "70B"])
def test_a_dense_size_is_met_within_a_tenth(size: str) -> None:
    total = count(shape_for(size, vocab_size=8192)).total
    assert abs(math.log(total / parse_size(size))) < 0.1


def test_the_seed_decides_every_weight_and_torch_keeps_its_own_state() -> None:
    shape = shape_for("1M", architecture="mixtral", vocab_size=320)
    before = torch.random.get_rng_state()
    one, same, other = (build(shape, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_sizes_are_read_as_they_are_written() -> None:
    assert [parse_size(s) for s in ("10M", "1.5b", "70k", 125000000, "2e6", 1e9)] == [
        10_000_000, 1_500_000_000, 70_000, 125_000_000, 2_000_000, 1_000_000_000,
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["", "ten", "-3M", "0", "10 Mb", "nan"])
def test_what_is_no_size_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="number of parameters"):
        parse_size(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": "1M", "vocab_size": 256_000}, r"nearest has .* smaller vocabulary"),
        ({"params": "10M"}, "vocab_size is needed"),
        ({"params": "10M", "vocab_size": 512, "architecture": "gpt5"}, "no architecture 'gpt5'"),
        ({"params": "10M", "vocab_size": 512, "experts": 4}, "experts: not to be chosen for qwen3"),
        (
            {"params": "10M", "vocab_size": 512, "architecture": "mixtral", "experts_per_token": 9},
            "9 of 8 experts",
        ),
        (
            {"params": "10M", "vocab_size": 512, "architecture": "llava", "image_size": 50},
            "does not divide into patches",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shape_for(**arguments)


def test_the_command_prints_the_table_and_writes_a_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size = ["model", "--params", "1M", "--arch", "qwen3_moe", "--experts", "8"]
    out = tmp_path / "fresh"
    assert main([*size, "--tokenizer", str(checkpoint), "--out", str(out)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    vocabulary = -(-len(tokenizer) // 64) * 64
    shape = shape_for("1M", architecture="qwen3_moe", experts=8, vocab_size=vocabulary)
    printed = capsys.readouterr().out
    assert table(shape) in printed
    assert f"{count(shape).active:,}" in printed
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(
        torch.equal(loaded[name], weight)
        for name, weight in build(shape, tokenizer).state_dict().items()
    )
    assert main([*size, "--tokenizer", str(checkpoint), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["model", "--params", "1M"]) == 2
    assert "--vocab or --tokenizer" in capsys.readouterr().err
