"""A base model whose window is extended, trained on at the new length; and a run that branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.context.extend import extend
from pretrain.data.shards import Shards
from pretrain.data.stream import Stream
from pretrain.errors import UsageError
from pretrain.training.job import train_model
from pretrain.training.settings import TrainConfig
from tests.pretrain.training.small_run import config, steps_of

LONG = 1024  # tokens; the window of ``whole`` is 512


@pytest.fixture(scope="module", params=["yarn", "abf"])
def extended(
    request: pytest.FixtureRequest, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("extended") / "model"
    extend(whole / "final", out, LONG, method=request.param)
    return out


def longer(shards: Shards, out: Path, model: Path, *, before: int = 0) -> dict[str, Any]:
    """Three steps on rows of ``LONG`` tokens across documents, after some on short rows."""
    tree = config(shards, out, model=str(model), data__across_documents=True)
    phases = [{"tokens": 3 * LONG, "rows": 1, "length": LONG}]
    if before:
        phases.insert(0, {"tokens": before * 4 * 48, "rows": 4, "length": 48})
    tree["data"]["phases"] = phases
    return tree


def test_an_extended_model_trains_on_longer_rows(
    whole: Path, extended: Path, shards: Shards, tmp_path: Path
) -> None:
    """From the loss that transformers gives it there, down."""
    from transformers import AutoModelForCausalLM

    tree = longer(shards, tmp_path / "run", extended)
    tree["optimizer"] |= {"rate": 1e-3}
    final = train_model(tree)
    losses = [record["loss"] for record in steps_of(tmp_path / "run")]
    batch = Stream(TrainConfig(**tree).data, seed=0).batch(0)
    ids = torch.from_numpy(batch.ids)
    model: Any = AutoModelForCausalLM.from_pretrained(extended, dtype="float32")
    with torch.no_grad():
        assert losses[0] == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-4)
    assert losses[-1] < losses[0]
    written, given = (
        json.loads((folder / "config.json").read_text()) for folder in (final, extended)
    )
    assert written["rope_parameters"] == given["rope_parameters"]
    assert written["max_position_embeddings"] == LONG
    with pytest.raises(UsageError, match="512"):
        train_model(longer(shards, tmp_path / "not", whole / "final"))


def test_a_branch_takes_the_state_and_the_longer_window(
    whole: Path, extended: Path, shards: Shards, tmp_path: Path
) -> None:
    """Weights and moments of a checkpoint from the stable phase, the config of the extended one."""
    tree = longer(shards, tmp_path / "run", extended, before=8)
    tree["checkpoint"]["start_from"] = str(whole / "checkpoints" / "step-00000008")
    final = train_model(tree)
    records = steps_of(tmp_path / "run")
    assert [record["step"] for record in records] == [9, 10, 11]
    assert records[0]["loss"] < steps_of(whole)[0]["loss"] - 1.0  # it has not started anew
    rope = json.loads((final / "config.json").read_text())["rope_parameters"]
    assert rope == json.loads((extended / "config.json").read_text())["rope_parameters"]
