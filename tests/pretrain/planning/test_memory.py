"""Bytes and prices against the worked examples of the papers that the formulas are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import UsageError
from pretrain.models import build, shape_for
from pretrain.planning.cost import Site, cost, flops_for, mfu
from pretrain.planning.memory import (
    Layout,
    Recompute,
    Shape,
    layer_activations,
    rank_memory,
    read_shape,
)

LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
LLAMA_405B = Shape(126, 16384, 128, 8, 128, 53248, 128256)
# Korthikanti et al. (2022), table 3.
GPT3 = Shape(96, 12288, 96, 96, 128, 4 * 12288, 51200, gated=False, dropout=True)
MT_NLG = Shape(105, 20480, 128, 128, 160, 4 * 20480, 51200, gated=False, dropout=True)


def test_parameters_of_published_models() -> None:
    assert LLAMA_8B.parameters == 8_030_261_248  # what transformers counts
    assert LLAMA_405B.parameters == 405_853_388_800


@pytest.mark.parametrize(
    ("layout", "recompute", "per_sbh"),
    [
        (Layout(), "none", 34 + 80),  # 5 a s / h = 5 * 96 * 2048 / 12288 = 80
        (Layout(8, 8), "none", 10 + 24 / 8 + 80 / 8),
        (Layout(8, 8, sequence_parallel=True), "none", (34 + 80) / 8),
        (Layout(8, 8), "selective", 10 + 24 / 8),
        (Layout(8, 8, sequence_parallel=True), "selective", 34 / 8),
        (Layout(8, 8), "full", 2),
        (Layout(8, 8, sequence_parallel=True), "full", 2 / 8),
    ],
)
def test_activations_of_a_gpt_layer(layout: Layout, recompute: Recompute, per_sbh: float) -> None:
    """Korthikanti et al. (2022), table 2, in units of s b h bytes."""
    found = layer_activations(GPT3, layout, row_tokens=2048, rows=4, recompute=recompute)
    assert found / (2048 * 4 * GPT3.hidden) == pytest.approx(per_sbh)


@pytest.mark.parametrize(("shape", "saved"), [(GPT3, 0.70), (MT_NLG, 0.65)])
def test_what_selective_recomputation_saves(shape: Shape, saved: float) -> None:
    """Korthikanti et al. (2022), section 5: 70 % for GPT-3, 65 % for MT-NLG."""
    layout = Layout(8, 8, sequence_parallel=True)
    all_of_it = layer_activations(shape, layout, row_tokens=2048, recompute="none")
    rest = layer_activations(shape, layout, row_tokens=2048, recompute="selective")
    assert 1 - rest / all_of_it == pytest.approx(saved, abs=0.005)


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_under_zero(zero: int, gigabytes: float) -> None:
    """Rajbhandari et al. (2020), figure 1: 7.5 B parameters on 64 ranks."""
    shape = Shape(1, 25_000, 1, 1, 25_000, 0, 200_000)  # 2.5 + 5 + 5 B less the unused
    scale = 7.5e9 / shape.parameters
    size = rank_memory(shape, Layout(64, zero=zero), row_tokens=1)
    states = size.weights + size.gradients + size.optimiser
    assert states * scale / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_llama_layer_counted_by_hand() -> None:
    """Per token: norms and matrix inputs 4 x 4096, Q and output 2 x 4096, K and V 2 x 1024, and
    4 x 14336 of the gated MLP (gate, its SiLU, up, product); two bytes each."""
    by_hand = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336)
    assert layer_activations(LLAMA_8B, Layout(), row_tokens=512) == 512 * by_hand
    # Without a fused attention also the softmax's output: 32 heads x 512, two bytes.
    unfused = layer_activations(LLAMA_8B, Layout(), row_tokens=512, recompute="none")
    assert unfused == 512 * (by_hand + 2 * 32 * 512)


def test_the_first_pipeline_stage_holds_the_activations_of_all_layers() -> None:
    whole = rank_memory(LLAMA_405B, Layout(8, 8), row_tokens=8192)
    staged = rank_memory(LLAMA_405B, Layout(56, 8, pipeline=7), row_tokens=8192)
    assert staged.activations == pytest.approx(whole.activations)
    assert staged.logits == 0  # they are the last stage's, which has less
    assert staged.optimiser < whole.optimiser / 6.5


def test_more_ranks_never_need_more() -> None:
    for name in ("tensor", "context", "pipeline"):
        totals = [
            rank_memory(LLAMA_405B, Layout(ranks=n, **{name: n}), row_tokens=8192).total
            for n in (1, 2, 4, 8)
        ]
        assert totals == sorted(totals, reverse=True), name


def test_context_ranks_share_the_states_too() -> None:
    """ZeRO divides over all ranks with the same weights, and context ranks have the same."""
    assert rank_memory(LLAMA_8B, Layout(8, context=8, zero=3), row_tokens=4096).weights == (
        pytest.approx(rank_memory(LLAMA_8B, Layout(8, zero=3), row_tokens=4096).weights)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout(ranks=6, tensor=4), "6 ranks cannot be divided.*a multiple of 4"),
        (lambda: Layout(zero=4), "zero must be"),
        (lambda: rank_memory(LLAMA_8B, Layout(3, tensor=3), row_tokens=9), "32 heads"),
        (lambda: rank_memory(LLAMA_8B, Layout(64, pipeline=64), row_tokens=9), "cannot fill 64"),
        (
            lambda: rank_memory(LLAMA_8B, Layout(sequence_parallel=True), row_tokens=9),
            "tensor must",
        ),
        (lambda: rank_memory(LLAMA_8B, Layout(), row_tokens=0), "at least 1"),
    ],
)
def test_layouts_that_cannot_be(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen3_moe", "mixtral"])
def test_parameters_of_a_model_are_those_that_transformers_builds(
    architecture: str, tmp_path: Path
) -> None:
    model = build(shape_for("2M", architecture=architecture, vocab_size=256))
    model.config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert shape.parameters == sum(sizes.values())
    idle = sum(n for name, n in sizes.items() if ".experts." in name)
    chosen, experts = shape.experts_per_token, shape.experts
    if experts:
        assert shape.active_parameters == shape.parameters - idle * (experts - chosen) // experts
        assert shape.active_parameters < 0.5 * shape.parameters
    per_token = 6 * shape.active_parameters + 12 * shape.layers * shape.heads * shape.head_dim * 64
    assert shape.flops_per_token(64) == per_token


def test_published_mixtures(tmp_path: Path) -> None:
    """Jiang et al. (2024): 47 B parameters, 13 B active. Qwen3-30B-A3B: 30.5 B and 3.3 B."""
    mixtral = Shape(32, 4096, 32, 8, 128, 14336, 32000, experts=8, experts_per_token=2)
    assert (mixtral.parameters, mixtral.active_parameters) == (46_702_792_704, 12_879_925_248)
    qwen = Shape(
        48, 2048, 32, 4, 128, 768, 151936, head_norms=True, experts=128, experts_per_token=8
    )
    assert (qwen.parameters / 1e9, qwen.active_parameters / 1e9) == (
        pytest.approx(30.5, abs=0.05),
        pytest.approx(3.35, abs=0.05),
    )


def test_a_mixture_is_held_whole_and_divided_by_zero_and_stages_alone() -> None:
    shape = Shape(4, 64, 4, 4, 16, 32, 512, experts=8, experts_per_token=2)
    experts = 4 * 8 * (3 * 64 * 32 + 64)
    rest = shape.parameters - experts
    of_two = rank_memory(shape, Layout(2, tensor=2), row_tokens=8)
    assert of_two.optimiser == 12 * (experts + rest / 2)
    assert rank_memory(shape, Layout(2, zero=1), row_tokens=8).optimiser == 6 * shape.parameters
    dense = Shape(4, 64, 4, 4, 16, 32, 512)
    more = layer_activations(shape, Layout(), row_tokens=1) - layer_activations(
        dense, Layout(), row_tokens=1
    )
    # By hand: one MLP of 4 x 32 more, two copies and two outputs of 64; 8 float32 probabilities.
    assert more == 2 * (4 * 32 + 2 * 2 * 64) + 4 * 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_type": "deepseek_v3", "n_routed_experts": 64}, "kind deepseek_v3"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "layers without experts"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "layers without experts"),
        ({"model_type": "mixtral"}, "has no 'num_local_experts'"),
    ],
)
def test_a_mixture_that_would_be_counted_wrongly(
    more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = dict(num_hidden_layers=2, hidden_size=256, num_attention_heads=4, vocab_size=512)
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 768} | more))
    with pytest.raises(UsageError, match=message):
        read_shape(tmp_path)


def test_a_shape_is_read_from_a_checkpoint_folder(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path) == LLAMA_8B
    del config["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has no 'intermediate_size'"):
        read_shape(tmp_path / "config.json")


# time, money, energy


def test_llama_3_405b() -> None:
    """Grattafiori et al. (2024): 3.8e25 FLOP, 16,000 H100 at 400 TFLOP/s; the rest is division."""
    flops = 6 * 405e9 * 15.6e12
    assert flops == pytest.approx(3.8e25, rel=0.005)
    found = cost(flops, gpus=16_000, achieved=400e12, site=Site(price=2.0))
    assert found.days == pytest.approx(68.6, abs=0.1)
    assert found.gpu_hours == pytest.approx(26.3e6, rel=0.001)
    assert found.money == pytest.approx(2 * found.gpu_hours)


@pytest.mark.parametrize(("hours", "mwh", "tonnes"), [(82_432, 36, 14), (1_022_362, 449, 173)])
def test_energy_of_the_llama_models(hours: float, mwh: float, tonnes: float) -> None:
    """Touvron et al. (2023), table 15: 7B and 65B, A100 of 400 W, PUE 1.1, 0.385 kg per kWh."""
    found = cost(hours * 3600 * 1e14, gpus=2048, achieved=1e14, site=Site(watts=400))
    assert found.gpu_hours == pytest.approx(hours)
    assert found.kwh / 1000 == pytest.approx(mwh, abs=1)
    assert found.co2_kg / 1000 == pytest.approx(tonnes, abs=0.5)


def test_goodput_is_paid_for() -> None:
    site = Site(price=3.0, goodput=0.8)
    found = cost(1e21, gpus=8, achieved=4e14, site=site)
    ideal = cost(1e21, gpus=8, achieved=4e14, site=Site(price=3.0))
    for name in ("gpu_hours", "days", "money", "kwh", "co2_kg"):
        assert getattr(found, name) == pytest.approx(getattr(ideal, name) / 0.8), name
    assert flops_for(found.gpu_hours, achieved=4e14, site=site) == pytest.approx(1e21)


def test_mfu_counts_the_attention() -> None:
    """PaLM's formula: 6 N + 12 L H Q T, by hand for 8 B parameters and rows of 8,192."""
    per_token = LLAMA_8B.flops_per_token(8192)
    assert per_token == 6 * 8_030_261_248 + 12 * 32 * 4096 * 8192
    assert mfu(6500, per_token, 989e12) == pytest.approx(0.4013, abs=1e-3)


def test_sites_that_cannot_be() -> None:
    for wrong in ({"pue": 0.9}, {"goodput": 0.0}, {"goodput": 1.1}, {"watts": 0}, {"price": -1}):
        with pytest.raises(UsageError):
            Site(**wrong)


@pytest.mark.parametrize(
    ("kind", "layers_kept", "more"),
    [("llama", "selective", 1.25), ("llama", "full", 1.0), ("mixtral", "selective", 1.25)],
)
def test_what_a_real_layer_keeps(kind: str, layers_kept: Recompute, more: float) -> None:
    """Bytes that autograd saves for one layer more of transformers' models. Their norms compute in
    float32 and rotary positions copy, which the formula leaves out: up to a quarter more."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def kept(layers: int) -> int:
        config = AutoConfig.for_model(
            kind,
            hidden_size=256,
            intermediate_size=896,
            num_hidden_layers=layers,
            vocab_size=512,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation="sdpa",
        )
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).train()
        if layers_kept == "full":
            model.gradient_checkpointing_enable()
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        ids = torch.zeros((2, 512), dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        del loss  # kept alive until here: a freed storage's address may be used again
        return sum(saved.values())

    mixture = {"experts": 8, "experts_per_token": 2} if kind == "mixtral" else {}
    shape = Shape(1, 256, 4, 2, 64, 896, 512, **mixture)
    counted = layer_activations(shape, Layout(), row_tokens=512, rows=2, recompute=layers_kept)
    assert counted <= (kept(4) - kept(2)) / 2 <= more * counted
