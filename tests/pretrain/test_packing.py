"""Packing: exact rows, and a packed document is read exactly as it is read alone."""

from __future__ import annotations

import pytest

from pretrain.packing import IGNORE, pack

END, PAD = 9, 0


def test_documents_fill_a_row_and_positions_restart() -> None:
    rows = pack([[1, 2], [3], [4, 5, 6]], 6, END, PAD)
    assert rows.tokens.tolist() == [[1, 2, END, 3, END, PAD], [4, 5, 6, END, PAD, PAD]]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    x = IGNORE
    assert rows.labels.tolist() == [[x, 2, END, x, END, x], [x, 5, 6, END, x, x]]
    assert rows.token_count == 6


def test_a_later_document_fills_an_earlier_row() -> None:
    rows = pack([[1, 2], [3, 4], [5]], 5, END, PAD)
    assert rows.tokens.tolist() == [[1, 2, END, 5, END], [3, 4, END, PAD, PAD]]


def test_a_document_longer_than_a_row_is_cut() -> None:
    rows = pack([[1, 2, 3, 4]], 3, END, PAD)
    assert rows.tokens.tolist() == [[1, 2, 3], [4, END, PAD]]


def test_nothing_packs_to_no_rows() -> None:
    assert pack([], 4, END, PAD).tokens.shape == (0, 4)


def test_a_packed_document_has_the_logits_it_has_alone() -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    first, second = [1, 2, 3], [4, 5, 6, 7]
    rows = pack([first, second], 10, END, PAD)
    with torch.no_grad():
        packed = model(
            input_ids=torch.from_numpy(rows.tokens),
            position_ids=torch.from_numpy(rows.positions),
            use_cache=False,
        ).logits[0]
        alone = model(input_ids=torch.tensor([[*second, END]])).logits[0]
    assert float((packed[4:9] - alone).abs().max()) == pytest.approx(0.0, abs=1e-5)
