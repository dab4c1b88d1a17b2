"""A mixture of experts in a real run: balance is learnt, load is told, death is an alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.shards import Shards
from pretrain.training import loop
from tests.pretrain.training.small_run import mixture, steps_of, trained


def used(records: list[dict[str, Any]], layer: int) -> int:
    """Experts that got at least a quarter of an even share over a run's steps.

    All tokens are much alike here, so at any one step most go to the same two.
    """
    loads = torch.tensor([record["expert_load"][layer] for record in records])
    return int((loads.mean(0) > 0.25 / 8).sum())


def test_the_load_is_told_and_the_balance_evens_it(shards: Shards, tmp_path: Path) -> None:
    runs = {}
    for weight in (0.0, 1.0):
        model = mixture(shards, tmp_path / f"model{weight}", weight)
        out = tmp_path / f"run{weight}"
        trained(shards, out, model=str(model), shape={}, steps=40)
        runs[weight] = steps_of(out)
        for record in runs[weight]:
            assert [sum(one) for one in record["expert_load"]] == pytest.approx([1, 1], abs=1e-3)
    assert runs[0.0][0]["expert_load"] == runs[1.0][0]["expert_load"]
    # The loss that is told is the tokens' own, without the balance.
    assert runs[0.0][0]["loss"] == pytest.approx(runs[1.0][0]["loss"], rel=1e-6)
    for layer in range(2):
        assert used(runs[0.0], layer) <= 4 < used(runs[1.0], layer)


def test_a_dead_expert_is_an_alarm(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(loop, "DEAD_AFTER", 5)
    model = mixture(shards, tmp_path / "model", 0.0)
    trained(shards, tmp_path / "run", model=str(model), shape={}, steps=8)
    said = capsys.readouterr().err
    assert said.count("step 5: layer 0: expert 7 is not used") == 1  # not again at each step
    assert "step 5: layer 1: the router chooses few experts" in said
