"""The three commands: a TOML file, overrides, one line of JSON, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main

PAIRS = [{"prompt": f"what is {i} ?", "chosen": f"{i}", "rejected": "?"} for i in range(12)]
STEPS = [
    {"prompt": f"what is {i} ?", "steps": ["1", "2"], "labels": [True, i % 2]} for i in range(12)
]
SMALL = ["steps=1", "batch_size=4", "bf16=false", "threads=1", "quiet=true", "held_out_share=0.4"]


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> Any:
    """Writes rows and a TOML file of a job; returns its path."""

    def make(rows: list[dict[str, Any]]) -> str:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = tmp_path / "job.toml"
        config.write_text(
            f'model = "{checkpoint}"\ndata = "{data}"\nout_dir = "{tmp_path / "out"}"\nseed = 1\n'
        )
        return str(config)

    return make


@pytest.mark.parametrize(
    ("command", "rows", "record"),
    [
        ("preference", PAIRS, "preference.json"),
        ("reward-model", PAIRS, "reward_model.json"),
        ("process-reward-model", STEPS, "process_reward_model.json"),
    ],
)
def test_a_command_trains_and_says_where(
    job: Any, tmp_path: Path, capsys: Any, command: str, rows: Any, record: str
) -> None:
    more = [f"reference_cache={tmp_path / 'cache'}"] if command == "preference" else []
    assert main([command, job(rows), *SMALL, *more]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["model"], said["steps"]) == (str(tmp_path / "out"), 1)
    kept = json.loads((tmp_path / "out" / record).read_text())
    assert (kept["seed"], kept["settings"]["batch_size"], kept["rows"]) == (1, 4, said["rows"])
    assert said["held_out"]


def test_bad_input_is_exit_code_2(job: Any, tmp_path: Path, capsys: Any) -> None:
    config = job([*PAIRS, {"prompt": "what ?", "chosen": "1"}])
    assert main(["reward-model", config, *SMALL]) == 2
    assert "rows.jsonl, row 13: no 'rejected'" in capsys.readouterr().err
    assert main(["preference", config, "loss=dop"]) == 2
    assert "setting 'loss'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_settings_are_listed(capsys: Any) -> None:
    assert main(["preference", "--settings"]) == 0
    table = capsys.readouterr().out
    assert "label_smoothing" in table and "'required'  checkpoint folder" in table
