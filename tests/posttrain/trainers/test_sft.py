"""Fine-tuning: TRL's own losses, an ordinary checkpoint, an exact resume, early, clean errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.cli import main
from posttrain.errors import UsageError
from posttrain.trainers.preview import show
from posttrain.trainers.sft import make_trainer, prepare, sft
from posttrain.trainers.sft_settings import SftSettings
from pretrain import (
    BaseSettings,
    CorpusSettings,
    ModelSettings,
    TrainSettings,
    chat_rows,
    make_base,
)
from tests import forked

ROWS = chat_rows(CorpusSettings(), 24, seed=2)
SHORT = SftSettings(
    steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, bf16=False, log_every=1, quiet=True
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads sum in an order of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = BaseSettings(
        model=ModelSettings(
            hidden_size=32, layers=2, mlp_size=32, heads=1, kv_heads=1, head_dim=32
        ),
        training=TrainSettings(steps=1, rows_per_step=1, row_tokens=64),
        documents=100,
    )
    return make_base(tmp_path_factory.mktemp("sft") / "base", settings)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft(base, ROWS, tmp_path_factory.mktemp("tuned") / "tuned", SHORT)


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "sft.json").read_text())
    return record


def losses_of(out: Path) -> list[float]:
    return [point["loss"] for point in record_of(out)["losses"]]


# what is learnt


def test_only_the_assistants_words_carry_a_label(base: Path, tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "1 + 1 ="},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "2 + 2 ="},
            {"role": "assistant", "content": "<think>2 + 2 = 4</think>4"},
        ]
    }
    ready = prepare(base, [row], SHORT)
    batch = next(iter(make_trainer(ready, tmp_path).get_train_dataloader()))
    labels = [label for label in batch["labels"][0].tolist() if label != -100]
    assert ready.tokenizer.decode(labels) == "2<|im_end|><think>2 + 2 = 4</think>4<|im_end|>"
    assert len(labels) == 11


def test_losses_are_those_of_trls_own_trainer(base: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    theirs = SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=10,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            assistant_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            model_init_kwargs={"dtype": "float32"},
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            seed=0,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    theirs.train()
    expected = [log["loss"] for log in theirs.state.log_history if "loss" in log]
    ours = losses_of(sft(base, ROWS, tmp_path / "ours", SHORT, steps=10))
    assert len(expected) == 10 and expected[0] - expected[-1] > 0.5
    assert ours == pytest.approx(expected, abs=1e-6)


def test_packed_steps_are_those_of_padded_rows(base: Path, tmp_path: Path) -> None:
    padded, packed = (
        sft(base, ROWS, tmp_path / packing, SHORT, steps=10, packing=packing)
        for packing in ("off", "batch")
    )
    assert losses_of(packed) == pytest.approx(losses_of(padded), abs=2e-5)
    norms = [[point["grad_norm"] for point in record_of(out)["losses"]] for out in (padded, packed)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert (packed / "config.json").read_text() == (padded / "config.json").read_text()


def test_a_filled_row_has_the_gradients_of_its_conversations(base: Path, tmp_path: Path) -> None:
    """All rows in one step: end to end in one long row, or padded."""
    gradients = []
    for packing, size in (("off", len(ROWS)), ("rows", 1)):
        settings = SHORT.model_copy(
            update={"packing": packing, "batch_size": size, "max_length": 2048}
        )
        ready = prepare(base, ROWS, settings)
        # The window is for checking examples; a row of several may be longer.
        trainer = make_trainer(ready, tmp_path)
        (batch,) = trainer.get_train_dataloader()
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, batch))
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_accumulated_steps_are_those_of_whole_ones(base: Path, tmp_path: Path) -> None:
    whole = sft(base, ROWS, tmp_path / "whole", SHORT)
    parts = sft(base, ROWS, tmp_path / "parts", SHORT, micro_batch_size=1)
    assert losses_of(parts) == pytest.approx(losses_of(whole), abs=1e-5)
    with pytest.raises(UsageError, match="batch_size 4 must be a multiple"):
        prepare(base, ROWS, SHORT.model_copy(update={"micro_batch_size": 3}))


def test_noise_on_embeddings_acts_in_training_only(base: Path, tuned: Path, tmp_path: Path) -> None:
    noisy = sft(base, ROWS, tmp_path / "noisy", SHORT, neftune_alpha=5.0)
    assert losses_of(noisy)[0] != pytest.approx(losses_of(tuned)[0], abs=1e-4)
    assert (noisy / "config.json").read_text() == (tuned / "config.json").read_text()


# the result


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
    assert [entry.name for entry in tuned.parent.iterdir()] == ["tuned"]


def test_the_record_says_what_was_learnt_from_what(tuned: Path) -> None:
    record = record_of(tuned)
    assert (record["steps"], record["rows"], record["seed"]) == (3, 24, 0)
    assert [point["step"] for point in record["losses"]] == [1, 2, 3]
    assert record["data"]["rows"] == {"the data": 24}
    first = record["examples"][0]["parts"]
    said = ROWS[0]["messages"][-1]["content"]
    assert [on for _, on in first] == [False, True, False]
    assert first[1][0] == said + "<|im_end|>"


def test_the_seed_and_the_data_decide_every_weight(base: Path, tuned: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    again = sft(base, jsonl, tmp_path / "again", SHORT)
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (tuned / weights).read_bytes()


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Ctrl-C while that step is being computed."""
    from transformers import TrainerCallback, trainer

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Interrupt])


@pytest.mark.parametrize("more", [{}, {"mix": True, "neftune_alpha": 5.0, "packing": "batch"}])
def test_an_interrupted_training_goes_on_exactly(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    data: Any = ROWS
    if more.pop("mix", None):
        for name, rows in (("a.jsonl", ROWS[:14]), ("b.jsonl", ROWS[14:])):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = None
        more["mix"] = {str(tmp_path / "a.jsonl"): 0.75, str(tmp_path / "b.jsonl"): 0.25}
    settings = SHORT.model_copy(update={"steps": 9, **more})
    whole = sft(base, data, tmp_path / "whole", settings)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9"):
            sft(base, data, out, settings)
    assert not out.exists()
    with pytest.raises(UsageError, match="is an interrupted training"):
        sft(base, data, out, settings)
    with pytest.raises(UsageError, match=r"was started with learning_rate = 0\.01"):
        sft(base, data, out, settings, resume=True, learning_rate=1e-3)
    sft(base, data, out, settings, resume=True)
    assert losses_of(out) == losses_of(whole)
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    assert not (tmp_path / "out.unfinished").exists()


def test_a_process_that_was_a_rank_alone_trains_alone(tmp_path: Path) -> None:
    """DeepSpeed's rank of a process without a launcher leaves LOCAL_RANK to its children."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from transformers import TrainingArguments\n"
        "from posttrain.trainers.sft_settings import SftSettings\n"
        "from posttrain.trainers.training import arguments\n"
        "from pathlib import Path\n"
        "made = arguments(TrainingArguments, SftSettings(), Path(), 0)\n"
        "assert made.world_size == 1 and made.local_process_index == 0\n"
        "assert os.environ['LOCAL_RANK'] == '0' and 'RANK' not in os.environ\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    assert forked.start([sys.executable, script], env=env | {"LOCAL_RANK": "0"}).wait(60) == 0


def test_the_experts_of_an_interrupted_training_go_on_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names in a checkpoint's file are not those in memory."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes, **heads, **experts, **ends)
    torch.manual_seed(0)
    mixture = tmp_path / "mixture"
    Qwen3MoeForCausalLM(config).save_pretrained(mixture)
    tokenizer.save_pretrained(mixture)
    whole = sft(mixture, ROWS, tmp_path / "whole", SHORT)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 3"):
            sft(mixture, ROWS, out, SHORT)
    sft(mixture, ROWS, out, SHORT, resume=True)
    assert losses_of(out) == losses_of(whole)
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


# what is shown


def test_trained_tokens_are_marked(base: Path) -> None:
    ready = prepare(base, ROWS, SHORT)
    plain, coloured = io.StringIO(), Screen()
    show(ready.shown, ready.report, plain)
    show(ready.shown, ready.report, coloured)
    said = ROWS[0]["messages"][-1]["content"].split("\n")[0]
    assert f"⟦{said}" in plain.getvalue()
    assert f"\x1b[1;32m{said}" in coloured.getvalue()
    assert plain.getvalue().count("⟦") == 3


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


# the command


def test_the_command_previews_and_trains(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = tmp_path / "sft.toml"
    config.write_text(f'model = "{base}"\ndata = "{rows}"\nbatch_size = 4\nbf16 = false\n')
    command = ["sft", str(config), f"out_dir={out}", "steps=2"]
    assert main([*command, "--preview"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("⟦") == 3 and "24 examples" in shown
    assert not out.exists()
    assert main([*command, "learning_rate=1e-2"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert (summary["model"], summary["steps"]) == (str(out), 2)
    assert summary["loss"] == record_of(out)["loss"]
    assert "24 examples" in printed.err
    assert main([*command, "out_dir=x", "data="]) == 2
    assert "give either data or mix" in capsys.readouterr().err


ZERO2 = {
    "zero_optimization": {"stage": 2},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_take_the_steps_of_one(base: Path, tuned: Path, tmp_path: Path) -> None:
    rows, zero = tmp_path / "rows.jsonl", tmp_path / "zero2.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    zero.write_text(json.dumps(ZERO2))
    out = tmp_path / "out"
    given = SHORT.model_dump(exclude_unset=True)
    given |= {"model": base, "data": rows, "out_dir": out, "deepspeed": zero}
    overrides = [f"{name}={json.dumps(value, default=str)}" for name, value in given.items()]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "posttrain.cli", "sft", *overrides],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(out) == pytest.approx(losses_of(tuned), abs=1e-4)
    assert done.stdout.count('"steps": 3') == 1  # one of them speaks
    assert (out / "model.safetensors").is_file()


# bad input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data holds no rows"),
        ([{"text": "hello"}], r"row 1: no 'messages', .* \(found: \['text'\]\)"),
        ([ROWS[0], {"messages": []}], "row 2: 'messages' must be a list"),
        ([{"messages": [{"role": "user"}]}], "needs a 'role' and a 'content'"),
        (
            [{"messages": [{"role": "user", "content": "hi"}]}],
            "no message has the role 'assistant'",
        ),
        ("nowhere.jsonl", r"no such data file: nowhere\.jsonl"),
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
        ("{{ messages[0].content }}", "can't be masked safely"),
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
