"""What a token costs: the same number from the model, the dial's table and the plan."""

from __future__ import annotations

import pytest

from pretrain.models import Shape, build
from pretrain.models.count import count
from pretrain.planning.memory import Shape as Planned
from pretrain.training.arithmetic import flops_per_token, matrix_parameters, needed_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_training_counts_as_the_table_does(tied: bool) -> None:
    shape = Shape("qwen3", 320, 64, 2, 2, 1, 32, 128, max_length=64, tied=tied)
    model = build(shape)
    counted = flops_per_token(matrix_parameters(model), model.config, 64)
    # Norm gains multiply nothing; the table leaves them out.
    assert counted == pytest.approx(count(shape).flops_training, rel=0.01)


def test_experts_that_sleep_cost_nothing() -> None:
    shape = Shape(
        *("qwen3_moe", 320, 64, 2, 2, 1, 32, 128),
        max_length=64,
        experts=8,
        experts_per_token=2,
        expert_ffn=64,
    )
    model = build(shape)
    counted = flops_per_token(matrix_parameters(model), model.config, 64)
    assert counted == pytest.approx(count(shape).flops_training, rel=0.01)


def test_memory_is_that_of_all_experts() -> None:
    dense = build(Shape("qwen3", 320, 64, 2, 2, 1, 32, 128, max_length=64))
    sizes = dict(experts=8, experts_per_token=2, expert_ffn=128)
    mixed = build(Shape("qwen3_moe", 320, 64, 2, 2, 1, 32, 128, max_length=64, **sizes))
    one, many = (
        needed_bytes(model.config, stage=0, ranks=1, low=False, micro_tokens=0)
        for model in (dense, mixed)
    )
    # Seven more experts of 3 x 64 x 128 in each of two layers, 16 bytes for each weight.
    assert many - one == 16 * 2 * 7 * 3 * 64 * 128


def test_stages_divide_the_layers_and_hold_more_micro_batches() -> None:
    model = build(Shape("qwen3", 320, 64, 4, 2, 1, 32, 128, max_length=64))
    told = {"ranks": 2, "low": False}
    whole, half = (
        needed_bytes(model.config, stage=1, micro_tokens=0, stages=n, **told) for n in (1, 2)
    )
    layers, words = 4 * (2 * 64 * 32 * 3 + 3 * 64 * 128), 320 * 64
    assert whole == (layers + words) * (4 + 4 + 4)  # the optimiser's 8 bytes over two ranks
    assert half == (layers // 2 + words) * (4 + 4 + 8)
    ours, theirs = (
        needed_bytes(model.config, stage=1, micro_tokens=100, stages=n, **told) for n in (1, 2)
    )
    assert ours - whole == theirs - half  # as many micro-batches as stages


def test_the_plan_counts_the_same() -> None:
    """6 N + 12 L H width T of a Qwen3 without an embedding of its own."""
    planned = Planned(layers=2, hidden=64, mlp=128, heads=2, kv_heads=1, head_dim=32,
                      vocabulary=320, tied=True)  # fmt: skip
    model = build(Shape("qwen3", 320, 64, 2, 2, 1, 32, 128, max_length=64))
    counted = flops_per_token(matrix_parameters(model), model.config, 64)
    assert planned.flops_per_token(64) == pytest.approx(counted, rel=0.01)
