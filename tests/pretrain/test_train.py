"""Training: it learns, it repeats itself bit for bit, and a checkpoint is whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import BaseSettings, ModelSettings, TrainSettings, make_base
from pretrain.packing import pack
from pretrain.train import TrainReport, schedule, train

TINY = ModelSettings(hidden_size=32, layers=1, mlp_size=64, heads=1, kv_heads=1, head_dim=32)
SHORT = TrainSettings(
    steps=12, rows_per_step=4, row_tokens=64, learning_rate=1e-2, warmup_steps=2, dtype="float32"
)
SETTINGS = BaseSettings(model=TINY, training=SHORT, documents=100)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "base", SETTINGS, seed=5)


def test_training_lowers_the_loss_and_says_so(base: Path) -> None:
    record = json.loads((base / "pretrain.json").read_text())
    assert len(record["losses"]) == 12
    assert 5.5 < record["losses"][0] < 6.5  # about the log of the vocabulary: it knows nothing yet
    assert record["losses"][-1] < record["losses"][0] - 1.5
    assert record["tokens"] > 12 * 4 * 64 * 0.8
    assert record["interrupted"] is False
    assert record["dtype"] == "float32"


def test_equal_seeds_give_equal_weights_bit_for_bit(base: Path, tmp_path: Path) -> None:
    again = make_base(tmp_path / "again", SETTINGS, seed=5)
    other = make_base(tmp_path / "other", SETTINGS, seed=6)
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (base / weights).read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (other / weights).read_bytes() != (base / weights).read_bytes()


def test_the_folder_is_an_ordinary_checkpoint(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert model.config.model_type == "qwen3"
    assert model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == ends
    assert model.config.vocab_size % 64 == 0
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.chat_template is not None


def test_a_folder_in_use_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make_base(tmp_path, SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        make_base(tmp_path / "base", SETTINGS)
    assert list(tmp_path.iterdir()) == []


class Interrupting(torch.nn.Module):
    """A model whose user presses Ctrl-C in the third step."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.calls = 0

    def forward(self, **_: object) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return type("Output", (), {"loss": self.weight.sum()})


def trained(model: Any, settings: TrainSettings) -> TrainReport:
    return train(model, pack([[1, 2, 3]], 4, 0, 0), settings)


def test_ctrl_c_ends_the_run_and_keeps_what_was_learnt() -> None:
    report = trained(Interrupting(), SHORT)
    assert report.interrupted
    assert len(report.losses) == 2


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = Interrupting()
    model.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="loss became nan"):
        trained(model, SHORT)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        train(Interrupting(), pack([], 4, 0, 0), SHORT)  # type: ignore[arg-type]


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    settings = TrainSettings(steps=101, warmup_steps=3)
    assert [schedule(step, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(52, settings) == pytest.approx(0.55)  # half of the 98 steps that follow
    assert schedule(101, settings) == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [{"heads": 3, "kv_heads": 2}, {"head_dim": 48}, {"layers": 0}])
def test_impossible_models_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ModelSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"threads": -1}])
def test_impossible_training_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TrainSettings(**wrong)  # type: ignore[arg-type]
