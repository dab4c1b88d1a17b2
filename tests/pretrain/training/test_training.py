"""Whole runs: they learn, resume bit for bit, survive damage, and end in an ordinary folder."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data.shards import Shards
from pretrain.data.stream import Stream
from pretrain.errors import RunError, UsageError
from pretrain.training import job
from pretrain.training.checkpoints import step_of, written
from pretrain.training.loss import Head
from pretrain.training.network import Network
from pretrain.training.settings import TrainConfig
from tests.pretrain.training.small_run import (
    WEIGHTS,
    as_command,
    config,
    steps_of,
    trained,
)


def test_it_learns_and_says_so(whole: Path) -> None:
    losses = [record["loss"] for record in steps_of(whole)]
    assert len(losses) == 12
    assert 5.4 < losses[0] < 6.0  # about the log of the vocabulary: it knows nothing yet
    assert losses[-1] < losses[0] - 2.0
    rates = [record["rate"] for record in steps_of(whole)]
    assert rates[:4] == pytest.approx([5e-3 / 3, 10e-3 / 3, 5e-3, 5e-3])
    assert rates[-1] == pytest.approx(5e-3 * (1 - 0.5**0.5))  # half of a decay over two steps
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    spoken = [line for line in lines if "mfu" in line]
    assert [line["step"] for line in spoken] == [4, 8, 12]
    assert all(line["tokens_per_s"] > 0 for line in spoken)
    (sample,) = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert sample["prompt"] == "en 0" and sample["step"] == 12


def test_bits_per_byte_are_those_of_the_documents(whole: Path, shards: Shards) -> None:
    """The same number by hand: transformers' own logits, document after document."""
    from transformers import AutoModelForCausalLM

    from pretrain.data.shards import join

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    said = {line["held_out"]: line["bits_per_byte"] for line in lines if "held_out" in line}
    assert set(said) == {"en/web", "de/web", "all"}
    model: Any = AutoModelForCausalLM.from_pretrained(whole / "final")
    bits = n_bytes = 0.0
    for n in range(50):  # 600 tokens of documents with 12 each
        ids = torch.from_numpy(join([shards])["de/web"].document(n))
        logits = model(ids[None]).logits[0].log_softmax(-1)
        bits -= float(logits.detach()[torch.arange(len(ids) - 1), ids[1:]].sum()) / np.log(2)
        bits += np.log2(shards.vocabulary)
        n_bytes += 11
    assert said["de/web"] == pytest.approx(bits / n_bytes, rel=1e-5)


def test_the_folder_is_an_ordinary_checkpoint(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(whole / "final")
    tokenizer: Any = AutoTokenizer.from_pretrained(whole / "final")
    record = json.loads((whole / "final" / "pretrain.json").read_text())
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings == 512
    assert model.generation_config.eos_token_id[0] == tokenizer.eos_token_id
    assert record["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert record["steps"] == 12 and record["tokens"] == 12 * 4 * 48
    assert sorted(path.name for path in written(whole / "checkpoints")) == [
        "step-00000008",
        "step-00000012",
    ]


def test_a_step_equals_transformers_own(shards: Shards, tmp_path: Path) -> None:
    """Loss and gradient norm of the first steps, against a plain loop around transformers."""
    out = trained(shards, tmp_path / "run", steps=3, optimizer__z_loss=0.0).parent
    settings = TrainConfig(**config(shards, tmp_path, steps=3))
    stream = Stream(settings.data, seed=0)
    torch.manual_seed(0)
    from transformers import AutoTokenizer

    from pretrain.model import new_model

    model = new_model(settings.shape, AutoTokenizer.from_pretrained(str(shards.tokenizer)), 0)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)
    for step, said in enumerate(steps_of(out)):
        rows = [torch.from_numpy(part) for part in _parts(stream.batch(step))]
        loss = model(input_ids=rows[0], labels=rows[1], position_ids=rows[2], use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = said["rate"]
        adam.step()
        adam.zero_grad()
        assert said["loss"] == pytest.approx(float(loss), rel=1e-5)
        assert said["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def _parts(batch: Any) -> tuple[Any, Any, Any]:
    return batch.ids, batch.labels, batch.positions


def test_rows_cut_into_micro_batches_give_the_same_weights(
    whole: Path, shards: Shards, tmp_path: Path
) -> None:
    out = trained(shards, tmp_path / "run", parallel__micro_tokens=48).parent
    ours, others = ([r["loss"] for r in steps_of(path)] for path in (whole, out))
    assert ours == pytest.approx(others, rel=1e-4)


@pytest.mark.slow
def test_compiled_layers_give_the_same_weights(whole: Path, shards: Shards, tmp_path: Path) -> None:
    """And, resumed by another program, the same bit for bit."""
    out = trained(shards, tmp_path / "run", compile=True).parent
    ours, others = ([r["loss"] for r in steps_of(path)] for path in (whole, out))
    assert ours == pytest.approx(others, rel=1e-5)
    weights = (out / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    trained(shards, out, compile=True)
    assert (out / "final" / "model.safetensors").read_bytes() == weights


# resume


SIGNALLED = """
import os, sys
from pretrain.cli import main
from pretrain.training.records import Records

step, number = int(sys.argv[1]), int(sys.argv[2])
append = Records.append

def signalled(self, record, *name):
    append(self, record, *name)
    if "grad_norm" in record and record["step"] == step:
        os.kill(os.getpid(), number)

Records.append = signalled
sys.exit(main(["train", *sys.argv[3:]]))
"""


def signalled(tree: dict[str, Any], folder: Path, step: int, number: int) -> tuple[int, str]:
    """Exit status and stderr of ``pretrain train`` that gets a signal after a step."""
    command = [sys.executable, "-c", SIGNALLED, str(step), str(number), *as_command(tree, folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stderr


def test_killed_or_interrupted_anywhere_it_resumes_bit_for_bit(
    whole: Path, shards: Shards, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    tree = config(shards, out)
    status, said = signalled(tree, tmp_path, random.randint(1, 5), signal.SIGKILL)
    assert status == -signal.SIGKILL, said
    status, said = signalled(tree, tmp_path, random.randint(6, 8), signal.SIGINT)
    assert status == 130, said
    assert "the same command goes on from there" in said
    interrupted = written(out / "checkpoints")[-1]
    assert step_of(interrupted) == len(steps_of(out)) < 12
    job.train_model(tree)
    assert (out / "final" / WEIGHTS).read_bytes() == (whole / "final" / WEIGHTS).read_bytes()
    assert [r["loss"] for r in steps_of(out)] == [r["loss"] for r in steps_of(whole)]


def test_a_life_that_ended_before_its_first_checkpoint_leaves_no_records(
    whole: Path, shards: Shards, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:3]))
    trained(shards, out)
    assert [r["step"] for r in steps_of(out)] == list(range(1, 13))


def test_a_damaged_checkpoint_is_set_aside(
    whole: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    trained(shards, out)
    newest = written(out / "checkpoints")[-1]
    (file,) = newest.glob("engine/engine/*.pt")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    trained(shards, out)
    said = capsys.readouterr().err
    assert "checkpoint step-00000012 is damaged" in said
    assert "going on from" in said and "step 8" in said
    assert (out / "final" / WEIGHTS).read_bytes() == (whole / "final" / WEIGHTS).read_bytes()
    for path in written(out / "checkpoints"):
        (path / "checkpoint.json").write_text("{")
    with pytest.raises(RunError, match="no checkpoint is whole"):
        trained(shards, out)


def test_other_settings_are_named(whole: Path, shards: Shards) -> None:
    with pytest.raises(UsageError, match=r"weight_decay: 0\.1 there, 0\.2 now") as caught:
        trained(shards, whole, optimizer__weight_decay=0.2, seed=1)
    assert "seed: 0 there, 1 now" in str(caught.value)
    with pytest.raises(UsageError, match="choose another out"):
        trained(shards, whole, checkpoint__resume="never")


def test_a_branch_starts_from_the_stable_phase(shards: Shards, tmp_path: Path) -> None:
    """A longer run from a checkpoint of a shorter one, whose decay it does not take over."""
    trained(shards, tmp_path / "short", schedule__decay=0.25, checkpoint__every=3)
    stable, late = (tmp_path / f"short/checkpoints/step-{n:08d}" for n in (9, 12))
    out = trained(shards, tmp_path / "long", steps=16, checkpoint__start_from=str(stable)).parent
    assert [record["step"] for record in steps_of(out)] == list(range(10, 17))
    assert steps_of(out)[0]["rate"] == pytest.approx(5e-3)
    with pytest.raises(UsageError, match="start from a checkpoint of the stable phase"):
        trained(shards, tmp_path / "late", steps=16, checkpoint__start_from=str(late))


def test_milestones_stay(shards: Shards, tmp_path: Path) -> None:
    out = trained(shards, tmp_path / "run", steps=20, checkpoint__keep_every=8).parent
    assert [step_of(path) for path in written(out / "checkpoints")] == [0, 8, 16, 20]


# spikes


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the labels of some steps noise, which no model predicts."""
    original = Stream.batch

    def plant(steps: set[int]) -> None:
        def batch(self: Stream, step: int, rows: slice = slice(None)) -> Any:
            found = original(self, step, rows)
            if step in steps:
                noise = np.random.default_rng(step).integers(0, 256, found.labels.shape)
                np.copyto(found.labels, noise)
            return found

        monkeypatch.setattr(Stream, "batch", batch)

    return plant


def test_a_bad_batch_is_skipped(shards: Shards, tmp_path: Path, planted: Any) -> None:
    planted({30})
    out = trained(
        shards, tmp_path / "run", steps=34, spikes__window=16, checkpoint__every=10
    ).parent
    records = steps_of(out)
    assert [record["step"] for record in records if record["skipped"]] == [31]
    assert "deviations above" in records[30]["skipped"]
    assert records[31]["loss"] < records[29]["loss"] + 0.1  # the noise was not learnt
    assert json.loads((out / "final/pretrain.json").read_text())["skipped_updates"] == 1


def test_spikes_in_a_row_roll_the_run_back(shards: Shards, tmp_path: Path, planted: Any) -> None:
    planted({36, 37, 38})
    out = trained(shards, tmp_path / "run", steps=42, spikes__window=16, checkpoint__every=5).parent
    steps = [record["step"] for record in steps_of(out)]
    assert steps == [*range(1, 37), 40, 41, 42]  # 37 to 39 passed over the second time
    rates = {record["step"]: record["rate"] for record in steps_of(out)}
    share = 1 - (1 / 8) ** 0.5  # the decay's second step of eight
    assert rates[34] == pytest.approx(5e-3)
    assert rates[36] == pytest.approx(0.5 * share * 5e-3)  # after going back to step 35
    about = json.loads((out / "final/pretrain.json").read_text())
    assert (about["rollbacks"], about["skipped_updates"]) == (1, 3)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if "rolled_back" in line]
    assert event == {"step": 35, "rolled_back": {"spikes": [36, 37, 38], "rate_factor": 0.5}}


def test_a_loss_that_is_no_number_is_skipped_and_counted(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Head.forward, iter(range(1_000))

    def forward(self: Head, hidden: Any, targets: Any, z_loss: float) -> Any:
        bad = next(calls) in (5, 8, 9, 10)
        return original(self, hidden * torch.nan if bad else hidden, targets, z_loss)

    monkeypatch.setattr(Head, "forward", forward)
    out = trained(shards, tmp_path / "run").parent
    records = steps_of(out)
    assert [r["step"] for r in records] == [*range(1, 9), 12]  # back to 8, past three steps
    assert [r["step"] for r in records if r["skipped"] == "the loss is nan"] == [6]
    assert [r["not_finite_in_all"] for r in records] == [0, 0, 0, 0, 0, 1, 1, 1, 4]
    about = json.loads((out / "final/pretrain.json").read_text())
    assert (about["rollbacks"], about["skipped_updates"]) == (1, 4)
    assert math.isfinite(records[-1]["loss"])


# bad input


def test_a_model_too_large_is_refused_before_it_is_built(shards: Shards, tmp_path: Path) -> None:
    giant = {"hidden_size": 65536, "layers": 200, "mlp_size": 262144, "heads": 64}
    with pytest.raises(UsageError, match="GiB are free"):
        trained(shards, tmp_path / "run", shape=giant)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__rate": -1.0}, "optimizer"),
        ({"checkpoint__every": 1}, "no checkpoint from before the spikes"),
        ({"nonsense": 1}, "nonsense"),
        ({"parallel__tensor": 2, "parallel__sequence": 2}, "only one can be above 1"),
        ({"parallel__pipeline": 2, "parallel__zero_stage": 2}, "zero_stage 0 or 1"),
        ({"parallel__pipeline": 2, "compile": True}, "can't be compiled"),
        ({"parallel__pipeline": 2}, "1 ranks can't be divided into groups of 2"),
        ({"compile": True, "parallel__zero_stage": 3}, "can't be compiled"),
        ({"model": "/nowhere/at/all"}, "can't be loaded"),
        ({"params": "1M"}, "apart from shape.max_length"),
        ({"params": "1M", "shape": {}, "model": "m"}, "model and params"),
        ({"architecture": "llama"}, "whose size is given by params"),
    ],
)
def test_bad_settings(shards: Shards, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trained(shards, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_too_small(whole: Path, shards: Shards, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(whole / "final")
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(UsageError, match="64 words"):
        trained(shards, tmp_path / "run", model=str(tmp_path / "small"))


def test_in_bfloat16_the_rotary_frequencies_stay_exact(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed leaves them, too; so held-out scores are those of the model that is saved."""
    seen: list[Any] = []
    original = Network.forward

    def forward(self: Network, *inputs: Any) -> Any:
        seen.append((self.model.model.rotary_emb.inv_freq, next(self.model.parameters()).dtype))
        return original(self, *inputs)

    monkeypatch.setattr(Network, "forward", forward)
    trained(shards, tmp_path / "run", steps=1, dtype="bfloat16")
    frequencies, weights = seen[-1]
    exact = 1e4 ** (-torch.arange(0, 32, 2) / 32)  # heads of 32
    assert weights is torch.bfloat16
    assert torch.allclose(frequencies, exact, rtol=1e-6, atol=0)


def test_a_size_by_the_dial_and_its_table(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained(shards, tmp_path / "run", steps=1, params="100K", architecture="llama", shape={})
    said = capsys.readouterr().err
    config = json.loads((out / "config.json").read_text())
    about = json.loads((out / "pretrain.json").read_text())
    assert config["model_type"] == "llama"
    assert 70_000 < about["parameters"] < 140_000
    assert f"total            {about['parameters']:>16,}" in said
    assert "FLOPs per token" in said


def test_data_of_another_tokenizer_are_refused(whole: Path, shards: Shards, tmp_path: Path) -> None:
    """Of the same size, so that only the words differ."""
    base = tmp_path / "base"
    shutil.copytree(whole / "final", base)
    tree = json.loads((base / "tokenizer.json").read_text())
    words = tree["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (base / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UsageError, match="is not the one of"):
        trained(shards, tmp_path / "run", model=str(base), shape={})
    assert not (tmp_path / "run").exists()
    trained(shards, tmp_path / "run", model=str(whole / "final"), shape={}, steps=1)
