"""Fine-tuning: loss on the assistant's words, an ordinary checkpoint, and early, clean errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UsageError
from posttrain.trainers.sft import SftSettings, sft
from pretrain import (
    BaseSettings,
    CorpusSettings,
    ModelSettings,
    TrainSettings,
    chat_rows,
    make_base,
)

ROWS = chat_rows(CorpusSettings(), 24, seed=2)
SHORT = SftSettings(steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, bf16=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = BaseSettings(
        model=ModelSettings(
            hidden_size=32, layers=1, mlp_size=32, heads=1, kv_heads=1, head_dim=32
        ),
        training=TrainSettings(steps=1, rows_per_step=1, row_tokens=64),
        documents=100,
    )
    return make_base(tmp_path_factory.mktemp("sft") / "base", settings)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft(base, ROWS, tmp_path_factory.mktemp("tuned") / "tuned", SHORT)


def test_only_the_assistants_words_carry_a_label(base: Path, tmp_path: Path) -> None:
    from posttrain.trainers.sft import _arguments, _tokenizer, _trainer

    row = {
        "messages": [
            {"role": "user", "content": "1 + 1 ="},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "2 + 2 ="},
            {"role": "assistant", "content": "<think>2 + 2 = 4</think>4"},
        ]
    }
    tokenizer = _tokenizer(base)
    trainer = _trainer(str(base), tokenizer, [row], _arguments(SHORT, tmp_path, 0))
    batch = next(iter(trainer.get_train_dataloader()))
    labels = [label for label in batch["labels"][0].tolist() if label != -100]
    assert tokenizer.decode(labels) == "2<|im_end|><think>2 + 2 = 4</think>4<|im_end|>"
    assert len(labels) == 11


def test_the_result_is_an_ordinary_checkpoint(base: Path, tuned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tuned)
    before: Any = AutoModelForCausalLM.from_pretrained(base)
    assert AutoTokenizer.from_pretrained(tuned).chat_template
    assert model.generation_config.eos_token_id == before.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == before.generation_config.pad_token_id
    assert not model.lm_head.weight.equal(before.lm_head.weight)
    leftovers = {entry.name for entry in tuned.iterdir()} - {e.name for e in base.iterdir()}
    assert leftovers == {"sft.json"}
    record = json.loads((tuned / "sft.json").read_text())
    assert (record["steps"], record["rows"], record["seed"]) == (3, 24, 0)


def test_the_seed_and_the_data_decide_every_weight(base: Path, tuned: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    again = sft(base, jsonl, tmp_path / "again", SHORT)
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (tuned / weights).read_bytes()


def test_parquet_and_datasets_hold_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    from posttrain.trainers.sft import _rows

    dataset = Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert _rows(tmp_path / "rows.parquet") == ROWS
    assert _rows(dataset) == ROWS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data holds no conversations"),
        ([{"text": "hello"}], r"row 1: no 'messages' column \(found: \['text'\]\)"),
        ([ROWS[0], {"messages": []}], "row 2: 'messages' must be a list"),
        ([{"messages": [{"role": "user"}]}], "needs a 'role' and a 'content'"),
        (
            [{"messages": [{"role": "user", "content": "hi"}]}],
            "no message has the role 'assistant'",
        ),
        ("nowhere.jsonl", r"there is no data file nowhere\.jsonl"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_written(
    base: Path, tmp_path: Path, data: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sft(base, data, tmp_path / "out" / "tuned", SHORT)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2: not JSON"):
        sft(base, tmp_path / "rows.jsonl", tmp_path / "out", SHORT)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match=r"no config\.json and no weights"):
        sft(tmp_path / "model", ROWS, tmp_path / "out", SHORT)
    with pytest.raises(UsageError, match="there is no checkpoint folder"):
        sft(tmp_path / "missing", ROWS, tmp_path / "out", SHORT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[0].content }}", "does not mark what the assistant says"),
    ],
)
def test_a_template_that_cannot_say_who_spoke_is_refused(
    base: Path, tmp_path: Path, template: str | None, message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    (model / "chat_template.jinja").unlink()
    if template:
        (model / "chat_template.jinja").write_text(template)
    with pytest.raises(UsageError, match=message):
        sft(model, ROWS, tmp_path / "out", SHORT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_in_use_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        sft(base, ROWS, tmp_path, SHORT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]
