"""Packed, chunked log-probs against stock transformers, one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from posttrain.errors import UsageError
from posttrain.learner.row_tensors import RowTensors
from posttrain.model.packed_attention import NAME, Layout, register, repeated_size
from posttrain.model.policy import Policy
from posttrain.model.token_logprobs import TokenLogprobs, chunk_for
from posttrain.types import PackedRow

VOCABULARY = 50
SIZE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def build(attention: str, family: str = "qwen3", **changes):
    register()
    torch.manual_seed(0)
    changes = {**SIZE, "tie_word_embeddings": True, "attn_implementation": attention, **changes}
    if family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=8, **changes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**changes))
    for parameter in model.parameters():  # large enough that attention is far from uniform
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    return model


def row_of(lengths: list[int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])
    mask = (positions > 0) & (torch.rand(sum(lengths), generator=generator) < 0.7)
    return ids, positions, mask, lengths


def laid_out(row, share_prompts: bool = True) -> RowTensors:
    """As the learner does it."""
    ids, positions, mask, lengths = row
    zeros = np.zeros(len(ids), np.float32)
    arrays = (ids.numpy(), positions.numpy(), mask.numpy(), zeros, zeros, np.array(lengths))
    return RowTensors(PackedRow(*arrays), torch.device("cpu"), share_prompts=share_prompts)


def inputs_of(row, share_prompts: bool = True):
    return laid_out(row, share_prompts).inputs


def answers(policy: Policy, row, temperature: float, mode="metric", share_prompts: bool = True):
    """Log-probs and entropies of the row's own targets, without the filling."""
    tensors = laid_out(row, share_prompts)
    logprobs, entropies, _ = policy(*tensors.inputs, temperature, mode)
    return logprobs[: tensors.n_targets], entropies[: tensors.n_targets]


def unpacked(model, temperature: float, row):
    """The same by stock transformers: each sequence alone, the whole softmax at once."""
    ids, _, mask, lengths = row
    logprobs, entropies = [], []
    for sequence, wanted in zip(ids.split(lengths), mask.split(lengths), strict=True):
        logits = model(input_ids=sequence[None]).logits[0].float() / temperature
        log_p = torch.log_softmax(logits, -1)
        rows = log_p[:-1][wanted[1:]]
        logprobs.append(rows.gather(1, sequence[1:][wanted[1:]][:, None])[:, 0])
        entropies.append(-(rows.exp() * rows).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([0.7, 1.0, 1.3]),
    st.sampled_from([1, 7, 1000]),
    st.sampled_from(["qwen3", "llama"]),
)
def test_packing_and_chunking_change_no_logprob(lengths, temperature, chunk, family) -> None:
    row = row_of(lengths)
    with torch.no_grad():
        found, entropy = answers(Policy(build(NAME, family), chunk), row, temperature)
        expected, entropy_expected = unpacked(build("sdpa", family), temperature, row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, entropy_expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [5, 1000])
@pytest.mark.parametrize("mode", ["metric", "loss"])
def test_packing_and_chunking_change_no_gradient(mode, chunk: int, tied: bool) -> None:
    lengths = [3, 17, 1, 9, 30, 2]
    row = row_of(lengths)
    packed, stock = build(NAME, tie_word_embeddings=tied), build("sdpa", tie_word_embeddings=tied)
    stock.load_state_dict(packed.state_dict())

    def loss(logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        weights = torch.linspace(-1, 1, len(logprobs))
        bonus = (entropy * weights.flip(0)).sum() if mode == "loss" else 0.0
        return (logprobs * weights).sum() + bonus

    loss(*answers(Policy(packed, chunk), row, 0.8, mode)).backward()
    loss(*unpacked(stock, 0.8, row)).backward()
    for (name, one), other in zip(packed.named_parameters(), stock.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=2e-5, rtol=1e-4), name


def group_row(groups: list[tuple[int, list[int]]]):
    """Groups of answers, each group with one prompt: (prompt length, answer lengths)."""
    ids, positions, mask, lengths = [], [], [], []
    for g, (prompt_length, answers) in enumerate(groups):
        prompt = torch.arange(prompt_length) * (g + 3) % VOCABULARY
        for i, answer in enumerate(answers):
            written = (torch.arange(answer) * 7 + i) % VOCABULARY
            ids.append(torch.cat([prompt, written]))
            lengths.append(prompt_length + answer)
            positions.append(torch.arange(lengths[-1]))
            mask.append(positions[-1] >= prompt_length)
    return torch.cat(ids), torch.cat(positions), torch.cat(mask), lengths


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 20), min_size=1, max_size=5)),
        min_size=1,
        max_size=3,
    )
)
def test_laying_out_a_shared_prompt_once_changes_nothing(groups) -> None:
    row = group_row(groups)
    if not row[2].any():
        return
    packed, stock = build(NAME), build("sdpa")
    found, _ = answers(Policy(packed, 16), row, 1.0)
    expected, _ = unpacked(stock, 1.0, row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, len(found))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, one), other in zip(packed.named_parameters(), stock.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=3e-5, rtol=1e-4), name


def test_a_shared_prompt_is_laid_out_once() -> None:
    tensors = laid_out(group_row([(10, [3, 5, 4]), (6, [2])]))
    ids, _, layout, (before, targets) = tensors.inputs
    assert 10 + (3 + 5 + 4) + 6 + 2 == 30
    assert len(ids) == len(layout.packed) == 30  # nothing to fill: 30 is a repeated size
    assert len(layout.again) == 2 * 10
    assert before[:3].tolist() == [9, 10, 11]  # the first answer follows its prompt
    assert before[3] == 9  # and so does the second
    assert tensors.n_targets == 3 + 5 + 4 + 2
    assert len(targets) == 16  # the fewest
    kept = (tensors.old_logprobs, tensors.advantages, tensors.mask)
    assert [int(part.sum()) for part in kept] == [0, 0, 14]  # filled outside the mask


def test_rows_of_a_run_have_few_shapes() -> None:
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(100):
        lengths_G_P = rng.integers(3, 45, size=(8, 8)).tolist()
        ids, _, layout, (_, targets) = inputs_of(
            group_row([(28, answers) for answers in lengths_G_P])
        )
        shapes.append((len(ids), len(targets), layout.calls[0]))
    assert max(len(set(column)) for column in zip(*shapes, strict=True)) <= 10


def test_repeated_sizes_are_eight_per_power_of_two() -> None:
    assert [repeated_size(n) for n in (0, 1, 7, 15, 16, 17, 31, 33)] == [
        0, 1, 7, 15, 16, 18, 32, 36,
    ]  # fmt: skip
    assert len({repeated_size(n) for n in range(1025, 2049)}) == 8
    assert all(0 <= repeated_size(n) - n <= n / 8 for n in range(3000))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    row = row_of([5, 12, 7])
    gradients = []
    for checkpointing in (False, True):
        model = build(NAME).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        Policy(model, 8)(*inputs_of(row), 1.0)[0].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_entropy_as_a_metric_has_no_gradient() -> None:
    logprobs, entropy, _ = Policy(build(NAME), 8)(*inputs_of(row_of([9])), 1.0, "metric")
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_dropout_is_off() -> None:
    policy = Policy(build(NAME, attention_dropout=0.5), 8).train()
    row = row_of([20, 11])
    assert torch.equal(policy(*inputs_of(row), 1.0)[0], policy(*inputs_of(row), 1.0)[0])


class Largest(TorchDispatchMode):
    """Remembers the most elements any tensor had that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest_tensor(chunk: int) -> int:
    """Elements of the largest tensor of a forward and backward pass over 600 tokens."""
    policy = Policy(build(NAME, vocab_size=2000), chunk)
    with Largest() as largest:
        policy(*inputs_of(row_of([20] * 30)), 1.0, "metric")[0].sum().backward()
    return largest.elements


def test_the_logits_of_all_tokens_never_exist_at_once() -> None:
    _, _, mask, _ = row_of([20] * 30)
    wanted = int(mask.sum())
    assert wanted > 300
    assert largest_tensor(chunk=16) == 2000 * 32  # the weight itself; 16 x 2000 logits are less
    assert largest_tensor(chunk=10_000) == repeated_size(wanted) * 2000


def head_gradients(chunk: int, dtype: torch.dtype, frozen: bool = False):
    """(d hidden [300, 32], d weight [2000, 32] or None); bfloat16 holds the inputs exactly."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator).bfloat16().to(dtype).requires_grad_()
    projection = torch.nn.Linear(32, 2000, bias=False, dtype=dtype)
    weight = torch.randn(2000, 32, generator=generator).bfloat16().to(dtype)
    projection.weight = torch.nn.Parameter(weight, requires_grad=not frozen)
    targets = torch.randint(0, 2000, (300,), generator=generator)
    logprobs, _ = TokenLogprobs(projection, chunk)(hidden, targets, 1.0, "off")
    (logprobs * torch.linspace(-1, 1, 300)).sum().backward()
    return hidden.grad, projection.weight.grad


def test_many_tiles_round_no_worse_than_one() -> None:
    exact = head_gradients(10_000, torch.float32)
    whole, tiled = (head_gradients(chunk, torch.bfloat16) for chunk in (10_000, 10))
    for truth, one, many in zip(exact, whole, tiled, strict=True):
        one_error, many_error = (float((x.float() - truth).norm()) for x in (one, many))
        assert 0 < many_error < 1.1 * one_error


def test_a_frozen_head_gets_no_gradient_and_passes_the_same_one_on() -> None:
    frozen, weight = head_gradients(10, torch.float32, frozen=True)
    assert weight is None
    assert torch.equal(frozen, head_gradients(10, torch.float32)[0])


def test_a_tile_is_small_on_a_cpu_and_large_on_a_gpu() -> None:
    assert [chunk_for(151_936, device) for device in ("cpu", "cuda:0")] == [7, 442]
    assert chunk_for(50, "cpu") == 1024
    assert chunk_for(2**24, "cpu") == 1


def test_sequences_of_one_call_differ_by_a_factor_of_two_at_most() -> None:
    layout = Layout.of([3, 50, 4, 100, 7, 64])
    assert layout.calls == ((3, 104), (2, 7), (1, 3))  # 104: eight sizes from 64 to 128
    assert layout.padded.numel() == 312 + 14 + 3
    assert layout.padded[layout.packed].tolist() == list(range(228))
    assert layout.cu_seqlens.tolist() == [0, 3, 53, 57, 157, 164, 228]


def test_a_sliding_window_that_would_cut_is_refused() -> None:
    changes = dict(use_sliding_window=True, sliding_window=16, max_window_layers=0)
    policy = Policy(build(NAME, **changes), 8)
    assert policy(*inputs_of(row_of([16, 9])), 1.0)[0].isfinite().all()
    with pytest.raises(ValueError, match="17 tokens is longer than the model's sliding window"):
        policy(*inputs_of(row_of([17, 9])), 1.0)


def test_a_head_that_does_more_than_a_product_is_refused() -> None:
    model = build(NAME)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UsageError, match="final_logit_softcapping"):
        Policy(model, 8)


def test_no_tokens_to_learn_from_gives_empty_logprobs() -> None:
    ids, positions, mask, lengths = row_of([4, 3])
    nothing = ids, positions, torch.zeros_like(mask), lengths
    found, _ = answers(Policy(build(NAME), 8), nothing, 1.0)
    assert found.shape == (0,)
    found.sum().backward()


@pytest.mark.parametrize("lengths", [[30, 20, 25], [600, 20]])  # attention in float32; in bfloat16
def test_bfloat16_stays_near_float32(lengths: list[int]) -> None:
    row = row_of(lengths)
    model = build(NAME)
    exact = answers(Policy(model, 64), row, 1.0)[0].detach()
    low = answers(Policy(model.to(torch.bfloat16), 64), row, 1.0)[0].detach()
    assert low.dtype == torch.float32
    assert float((low - exact).abs().mean()) < 0.1
    assert np.isfinite(low.numpy()).all()
