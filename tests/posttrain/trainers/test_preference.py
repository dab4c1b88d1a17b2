"""Training on preferences: TRL's own losses, a kept reference, interruption, adapters, warnings."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import UsageError
from posttrain.trainers import pair_training, reference_cache
from posttrain.trainers.chosen_watch import ChosenWatch
from posttrain.trainers.preference import PreferenceSettings, train_preferences

ROWS = [
    {"prompt": f"what is {i} + 1 ?", "chosen": f"{i + 1}", "rejected": f"{i} or {i + 2}"}
    for i in range(24)
]
SMALL: dict[str, Any] = {
    "steps": 10, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "bf16": False,
    "log_every": 1, "held_out_share": 0.0, "threads": 1, "quiet": True,
}  # fmt: skip
MODEL = "model.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def train(model: Path, out: Path, cache: str, rows: Any = ROWS, **changes: Any) -> dict[str, Any]:
    folder = train_preferences(model, rows, out, **(SMALL | {"reference_cache": cache} | changes))
    record: dict[str, Any] = json.loads((folder / "preference.json").read_text())
    return record


def losses(record: dict[str, Any]) -> list[float]:
    return [point["loss"] for point in record["curves"]]


def test_the_first_ten_losses_are_trls_own(checkpoint: Path, tmp_path: Path, cache: str) -> None:
    """TRL given the same rows as messages: its tokens, its reference model, its loss."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    ours = train(checkpoint, tmp_path / "out", cache)
    data = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{s: [{"role": "assistant", "content": row[s]}] for s in ("chosen", "rejected")},
        }
        for row in ROWS
    ]
    trainer = DPOTrainer(
        model=str(checkpoint),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), max_steps=10, per_device_train_batch_size=4,
            learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=2, bf16=False,
            gradient_checkpointing=False, use_cpu=True, logging_steps=1, report_to="none",
            save_strategy="no", disable_tqdm=True, seed=0, beta=0.1,
        ),
        train_dataset=Dataset.from_list(data),
    )  # fmt: skip
    trainer.train()
    theirs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses(ours) == pytest.approx(theirs, abs=2e-5)
    assert len(theirs) == 10 and theirs[0] == pytest.approx(0.693147, abs=1e-5)
    assert theirs[-1] < 0.5
    assert ours["tokens"] == trainer.state.log_history[-2]["num_tokens"]


def test_the_result_is_a_checkpoint_with_a_record(
    checkpoint: Path, tmp_path: Path, cache: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [*ROWS, {"prompt": "what ?", "chosen": "1", "rejected": "1"}]
    record = train(
        checkpoint, tmp_path / "out", cache, rows, held_out_share=0.3, bad_rows="drop", log_every=5
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "cache"}
    assert record["dropped"] == {"equal answers": 1}
    assert 12 <= record["rows"] < 24
    assert [point["step"] for point in record["curves"]] == [1, 5, 10]
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    assert {*names, "logps/chosen"} <= record["curves"][0].keys()
    assert record["held_out"]["rewards/accuracies"] == 1.0  # a tiny task
    assert record["curves"][-1]["rewards/margins"] > 0.5


def test_the_reference_is_computed_once_for_a_model_and_data(
    checkpoint: Path, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOTrainer

    asked: list[str] = []
    real = DPOTrainer._precompute_ref_logps

    def counted(self: Any, dataset: Any, name: str, batch_size: int) -> Any:
        asked.append(name)
        return real(self, dataset, name, batch_size)

    monkeypatch.setattr(DPOTrainer, "_precompute_ref_logps", counted)
    short = {"steps": 1}
    moved = train(checkpoint, tmp_path / "a", cache, steps=3)
    first = train(checkpoint, tmp_path / "z", cache, **short)
    again = train(checkpoint, tmp_path / "b", cache, **short, loss="ipo", beta=0.2)
    assert asked == ["train"]
    assert losses(again)[0] == pytest.approx(2.5**2)  # at the start h = 0: (1 / (2 * 0.2))^2
    same = train(checkpoint, tmp_path / "c", cache, **short)
    assert losses(same) == losses(first) == losses(moved)[:1]
    train(tmp_path / "a", tmp_path / "d", cache, **short)  # another model
    train(checkpoint, tmp_path / "e", cache, ROWS[1:], **short)  # other data
    train(checkpoint, tmp_path / "f", cache, **short, bf16=True)  # another precision
    assert asked == ["train"] * 4
    adapter = {"lora": {"rank": 2, "alpha": 4}}  # the reference is the model without it
    train(checkpoint, tmp_path / "g", cache, **short, **adapter)
    assert asked == ["train"] * 4
    for loss in ("simpo", "orpo", "cpo"):
        train(checkpoint, tmp_path / loss, cache, ROWS[2:], **short, loss=loss)
    assert asked == ["train"] * 4  # without reference


def test_a_torn_cache_is_no_cache(tmp_path: Path) -> None:
    reference_cache.store(tmp_path, "k", {"a": [1.0, 2.0]})
    found = reference_cache.load(tmp_path, "k", ["a"], 2)
    assert found is not None and found["a"].tolist() == [1.0, 2.0]
    assert reference_cache.load(tmp_path, "k", ["a"], 3) is None
    assert reference_cache.load(tmp_path, "k", ["a", "b"], 2) is None
    whole = (tmp_path / "k.npz").read_bytes()
    (tmp_path / "k.npz").write_bytes(whole[: len(whole) // 2])
    assert reference_cache.load(tmp_path, "k", ["a"], 2) is None


@pytest.mark.parametrize("loss", ["kto", "orpo"])
def test_the_other_trainers_learn_the_preference(
    checkpoint: Path, tmp_path: Path, cache: str, loss: str
) -> None:
    record = train(checkpoint, tmp_path / "out", cache, loss=loss, steps=18, log_every=6)
    start, first, _, last = record["curves"]  # step 1, and means of steps 2-6, 7-12, 13-18
    assert last["rewards/margins"] > first["rewards/margins"] + 0.05
    assert last["loss"] < first["loss"]
    if loss == "kto":
        assert start["loss"] == pytest.approx(0.5, abs=1e-6)  # 1 - sigmoid(0) for good and bad


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ctrl-C while the step is trained."""
    from transformers import TrainerCallback

    class Press(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step - 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pair_training, "progress", lambda names, quiet: Press())


def test_an_interrupted_training_goes_on_to_the_same_bits(
    checkpoint: Path, tmp_path: Path, cache: str
) -> None:
    whole = train(checkpoint, tmp_path / "whole", cache)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 10"):
            train(checkpoint, tmp_path / "cut", cache)
    assert (tmp_path / "cut.unfinished" / "checkpoint-4").is_dir()
    assert not (tmp_path / "cut").exists()
    with pytest.raises(UsageError, match="is an interrupted training"):
        train(checkpoint, tmp_path / "cut", cache)
    with pytest.raises(UsageError, match=r"was started with learning_rate = 0\.001, and now"):
        train(checkpoint, tmp_path / "cut", cache, resume=True, learning_rate=2e-3)
    with pytest.raises(UsageError, match="was started with rows = "):
        train(checkpoint, tmp_path / "cut", cache, ROWS[1:], resume=True)
    cut = train(checkpoint, tmp_path / "cut", cache, resume=True)
    assert losses(cut) == losses(whole)
    assert (tmp_path / "cut" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert not (tmp_path / "cut.unfinished").exists()
    with pytest.raises(UsageError, match="there is no interrupted training"):
        train(checkpoint, tmp_path / "new", cache, resume=True)


# adapters


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"rslora": True}, {"bits": 4}])
def test_an_adapter_is_trained_and_merged(
    checkpoint: Path, tmp_path: Path, cache: str, kind: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes" if "bits" in kind else "peft")
    lora = {"rank": 2, "alpha": 8, "targets": ("q_proj", "v_proj"), **kind}
    record = train(checkpoint, tmp_path / "out", cache, lora=lora, learning_rate=1e-2)
    assert losses(record)[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses(record)[-1] < 0.6
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["use_dora"], config["use_rslora"]) == (
        2, bool(kind.get("dora")), bool(kind.get("rslora")),
    )  # fmt: skip
    before, after = load_file(checkpoint / MODEL), load_file(tmp_path / "out" / MODEL)
    moved = {name for name in before if not before[name].equal(after[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj"}
    trained = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


@pytest.mark.parametrize("kind", [{}, {"bits": 4}])
def test_an_adapter_goes_on_from_another_and_refers_to_it(
    checkpoint: Path, tmp_path: Path, cache: str, kind: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes" if kind else "peft")
    train(checkpoint, tmp_path / "a", cache, lora={"rank": 2, **kind}, learning_rate=1e-2)
    start = str(tmp_path / "a" / "adapter")
    lora = {"start": start, **kind}
    record = train(checkpoint, tmp_path / "b", cache, lora=lora, learning_rate=1e-2)
    assert losses(record)[0] == pytest.approx(0.693147, abs=1e-5)  # against itself
    assert record["curves"][-1]["logps/rejected"] < record["curves"][0]["logps/rejected"] - 1
    with pytest.raises(UsageError, match=rf"the adapter .* was trained on {checkpoint}, not on"):
        train(tmp_path / "a", tmp_path / "c", cache, lora={"start": start})
    with pytest.raises(UsageError, match="is not an adapter"):
        train(checkpoint, tmp_path / "c", cache, lora={"start": str(tmp_path)})


# bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"targets": ("q_prj",)}}, r"lora\.targets: .* no linear layers called 'q_prj'"),
        ({"max_length": 12}, r"the data, row 1: \d+ tokens are over max_length = 12"),
        ({"batch_size": 4, "micro_batch_size": 3}, "must be a multiple of"),
        ({"lossy": 1}, "unknown setting 'lossy'; did you mean"),
        ({"gamma": 2.0}, "loss = 'dpo' has no gamma"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, cache: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(checkpoint, tmp_path / "deep" / "out", cache, **changes)
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_and_folders_are_refused(checkpoint: Path, tmp_path: Path, cache: str) -> None:
    broken = [ROWS[0], ROWS[1] | {"rejected": ROWS[1]["chosen"]}]
    with pytest.raises(UsageError, match="the data, row 2: both answers are"):
        train(checkpoint, tmp_path / "out", cache, broken)
    with pytest.raises(UsageError, match="no row is left to train on"):
        train(checkpoint, tmp_path / "out", cache, max_length=5, too_long="drop")
    with pytest.raises(UsageError, match="there is no checkpoint folder"):
        train(tmp_path / "nowhere", tmp_path / "out", cache)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(UsageError, match="is not empty"):
        train(checkpoint, tmp_path / "out", cache)


# the chosen answers' log-prob


def watched(beta: float, reference: bool, logs: list[tuple[float, float]]) -> ChosenWatch:
    watch = ChosenWatch(beta, reference)
    for step, (logp, reward) in enumerate(logs, 1):
        state = SimpleNamespace(global_step=step)
        watch.on_log(None, state, None, {"logps/chosen": logp, "rewards/chosen": reward})
    return watch


def test_a_fall_of_the_chosen_answers_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    # reward / beta: 0, -1, -6, -9 nats against the reference; a tenth of the start is 2 nats
    watch = watched(0.1, True, [(-20, 0.0), (-21, -0.1), (-26, -0.6), (-29, -0.9), (-25, -0.5)])
    assert len(watch.warnings) == 1
    assert "step 3: the chosen answers became less likely" in watch.warnings[0]
    assert "fell from -20.0 to -26.0" in watch.warnings[0]
    assert capsys.readouterr().err.count("less likely") == 1
    assert watch.numbers() == pytest.approx({"end": -25, "change": -5.0, "lowest_change": -9.0})


def test_without_reference_the_first_window_is_the_start() -> None:
    watch = watched(2.0, False, [(-20, -40), (-21.5, -43), (-23, -46)])
    assert ["fell from -20.0 to -23.0" in text for text in watch.warnings] == [True]
    assert watched(2.0, False, [(-20, -40), (-21.5, -43), (-10, -20)]).warnings == []


def test_a_longer_past_is_seen_after_a_resume() -> None:
    watch = ChosenWatch(1.0, False)
    past = [{"step": 1, "logps/chosen": -20.0, "rewards/chosen": -20.0}, {"step": 2, "loss": 1.0}]
    watch.on_train_begin(None, SimpleNamespace(log_history=past), None)
    watch.on_log(
        None, SimpleNamespace(global_step=3), None, {"logps/chosen": -30.0, "rewards/chosen": -30.0}
    )
    assert ["from -20.0 to -30.0" in text for text in watch.warnings] == [True]


def test_the_fall_is_in_the_record(
    checkpoint: Path, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers that differ only in their last token share their fall."""
    rows = [
        {"prompt": f"what is {i} ?", "chosen": "1 + 2 ? 3 1", "rejected": "1 + 2 ? 3 2"}
        for i in range(8)
    ]
    record = train(
        checkpoint, tmp_path / "out", cache, rows, loss="apo_down", steps=30, learning_rate=3e-3
    )
    assert record["chosen_logprob"]["lowest_change"] < -1.0
    assert len(record["warnings"]) == 1
    assert record["warnings"][0] in capsys.readouterr().err


def test_the_settings_are_a_flat_table() -> None:
    from posttrain.config import settings_table

    names = [name for name, _, _ in settings_table(PreferenceSettings)]
    assert len(names) == len(set(names)) < 30
    assert all(text for _, _, text in settings_table(PreferenceSettings))
