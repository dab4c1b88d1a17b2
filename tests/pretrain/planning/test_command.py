"""``pretrain plan`` from its arguments: what it prints, what it refuses, and how files are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.cli import main
from pretrain.errors import UsageError
from pretrain.planning.law import LAWS
from pretrain.planning.runs import Run, read_runs
from pretrain.planning.text import duration


@pytest.fixture
def runs_file(tmp_path: Path) -> Path:
    law = LAWS["besiroglu"]
    file = tmp_path / "runs.jsonl"
    rows = [
        {"parameters": n, "tokens": d, "loss": law.loss(n, d), "note": "kept"}
        for n in (1e8, 4e8, 2e9)
        for d in (2e9, 1e10, 5e10)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_a_person_reads_days_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    command = "--parameters 405e9 --tokens 15.6e12 --gpus 16000 --tflops 400 --price 2.5"
    assert main(["plan", *command.split()]) == 0
    told = capsys.readouterr().out
    assert "3.79e+25 FLOP" in told
    assert "405 B parameters on 15.6 T tokens (38.5 each), loss 1.819" in told
    assert "68.6 days on 16,000 H100 at 400 TFLOP/s each" in told
    assert "26,325,000" in told
    assert "rate by DeepSeek LLM  0.000198, with 67.9 M tokens a step" in told
    assert "65,812,500" in told
    assert "20,270 MWh, 7,804 t CO2e" in told


@pytest.mark.parametrize(
    ("days", "text"),
    [(68.55, "68.5 days"), (0.5, "12 hours"), (0.01, "14.4 minutes"), (1e-5, "0.864 seconds")],
)
def test_durations_have_a_unit_that_fits(days: float, text: str) -> None:
    assert duration(days) == text


def test_a_budget_in_gpu_hours_is_one_in_flop(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--gpu-hours", "1000", "--mfu", "0.5", "--gpu", "a100")
    assert found["flops"] == pytest.approx(1000 * 3600 * 0.5 * 312e12)
    assert found["cost"]["gpu_hours"] == pytest.approx(1000)


def test_a_measured_speed_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--parameters", "1e9", "--tokens", "2e10")
    found = plan(capsys, *size, "--tokens-per-second", "1e4", "--gpus", "2")
    assert found["cost"]["days"] == pytest.approx(2e10 / 1e4 / 2 / 86400)


def test_own_runs_stand_beside_the_published_laws(
    capsys: pytest.CaptureFixture[str], runs_file: Path
) -> None:
    found = plan(capsys, "--flops", "1e21", "--runs", str(runs_file))
    assert found["laws"]["your runs"]["optimum"] == pytest.approx(
        found["laws"]["besiroglu"]["optimum"], rel=1e-3
    )
    assert "2 budgets of 3 sizes" in found["fit"]["isoflop"]["missing"]
    assert "2 sizes with 3 rates" in found["fit"]["rates"]["missing"]
    assert main(["plan", "--flops", "1e21", "--runs", str(runs_file)]) == 0
    assert "alpha" in capsys.readouterr().out


def test_memory_and_rate_of_a_given_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = dict(num_hidden_layers=2, hidden_size=256, num_attention_heads=4, vocab_size=512)
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 768}))
    model = ("--model", str(tmp_path))
    found = plan(capsys, *model, "--gpus", "4", "--zero", "3", "--mup-from", "2e-3", "128")
    assert found["memory"]["weights"] == pytest.approx(2 * found["memory"]["parameters"] / 4)
    assert found["mup_rate"] == pytest.approx(1e-3)
    assert main(["plan", *model]) == 0
    assert "memory of a rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to plan"),
        ("--flops 0", "flops must be finite and above 0"),
        ("--flops=-1e20", "above 0, not -1e+20"),
        ("--flops nan", "must be finite"),
        ("--gpu-hours 0", "gpu hours must be"),
        ("--flops 1e20 --gpu-hours 5", "--flops and --gpu-hours each set the budget"),
        ("--tokens 1e9", "--tokens needs a size"),
        ("--parameters 0 --tokens 1e9", "parameters must be finite and above 0"),
        ("--flops 1e20 --mfu 1.5", "a share of the peak"),
        ("--flops 1e20 --tokens-per-second 5", "is of a size"),
        ("--flops 1e20 --gpus 0", "GPUs must be"),
        ("--flops 1e20 --inference-tokens -1", "inference tokens must be 0 or more, not -1"),
        ("--flops 1e20 --mup-from 1e-3 64", "give the new model with --model"),
        ("--flops 1e20 --goodput 0", "goodput is 0"),
        ("--model nowhere.json", "cannot read a model's shape from nowhere.json"),
        ("--flops 1e20 --runs nowhere.jsonl", "cannot read the runs in nowhere.jsonl"),
    ],
)
def test_what_cannot_be_planned(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert message in refused(capsys, *arguments.split())


def test_too_few_runs_are_refused_by_number(
    capsys: pytest.CaptureFixture[str], runs_file: Path
) -> None:
    runs_file.write_text("\n".join(runs_file.read_text().splitlines()[:4]) + "\n")
    told = refused(capsys, "--flops", "1e20", "--runs", str(runs_file))
    assert "there are 4 runs, 2 sizes" in told
    assert "add 2 more runs, 1 more sizes" in told
    runs_file.write_text("")
    assert "add 6 more runs" in refused(capsys, "--flops", "1e20", "--runs", str(runs_file))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"parameters": 1, "tokens": 2, "loss": 3}\n\n{"parameters": 5, "tok')
    assert read_runs(file) == [Run(1, 2, 3)]
    file.write_text('{"parameters": 1, "tokens": 2, "loss": 3}')  # whole, without a line break
    assert read_runs(file) == [Run(1, 2, 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1, 2]", "line 2 is not an object"),
        ('{"parameters": 1, "tokens": 2}', "line 2: loss is None"),
        ('{"parameters": "1e6", "tokens": 2, "loss": 3}', "line 2: parameters is '1e6'"),
        ('{"parameters": true, "tokens": 2, "loss": 3}', "line 2: parameters is True"),
        ('{"parameters": 1, "tokens": 0, "loss": 3}', "line 2: tokens is 0"),
        ('{"parameters": 1, "tokens": 2, "loss": NaN}', "line 2: loss is nan"),
        ('{"parameters": 1, "tokens": 2, "loss": 3, "learning_rate": -1}', "learning_rate is -1"),
    ],
)
def test_nonsense_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    file = tmp_path / "runs.jsonl"
    good = '{"parameters": 1, "tokens": 2, "loss": 3}\n'
    file.write_text(good + row + "\n" + good)
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        read_runs(file)


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, pretrain.cli; pretrain.cli._parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    heavy = {"torch", "transformers", "datatrove", "scipy", "deepspeed", "tokenizers"}
    assert set(done.stdout.split()) & heavy == set(), done.stderr
    assert "pretrain.planning.command" in done.stdout
