"""Several runs on one page, and the timeline: exact cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.config import GrpoConfig
from posttrain.errors import UsageError
from posttrain.report.compare import differences, names, numbers
from posttrain.report.history import History, read_history
from posttrain.report.timeline import MOST, timeline
from posttrain.storage.run_dir import RunDir


def made(path: Path, accuracy: float, **settings: Any) -> Path:
    tree = {"model": "m", "env": "e", "grpo": {"steps": 2}} | settings
    with RunDir.create(path, GrpoConfig.model_validate(tree)) as run:
        for step in range(2):
            run.log({"kind": "step", "step": step, "reward_mean": accuracy, "time_total_s": 2.0})
        interval = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
        run.log({"kind": "eval", "step": 2, "phase": "after", "accuracy": accuracy, **interval})
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [made(tmp_path / "a/x", 0.3, seed=1), made(tmp_path / "b/x", 0.7, seed=2)]


def test_the_page_of_two_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, runs)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == runs[0] / "comparison.html"
    page = path.read_text()
    assert "<h1>a/x against b/x</h1>" in page
    assert "30.0%" in page
    assert "70.0%" in page
    assert "<tr><td>seed</td><td>1</td><td>2</td></tr>" in page


def test_numbers_and_differences(runs: list[Path]) -> None:
    histories = {name: read_history(run) for name, run in zip("ab", runs, strict=True)}
    assert numbers(histories)[0] == ("State", "finished", "finished")
    (held_out,) = [row for row in numbers(histories) if row[0] == "Held-out accuracy"]
    assert held_out[1].startswith("30.0% ([20.0, 40.0]")
    assert [row for row in differences(histories) if row[0] != "created"] == [("seed", "1", "2")]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a/b/x", tmp_path / "c/b/x", tmp_path / "c/b/y"]
    assert names(paths) == ["a/b/x", "c/b/x", "c/b/y"]
    assert names(paths[:1]) == ["x"]
    with pytest.raises(UsageError, match="given twice"):
        names([paths[0], paths[0]])
    with pytest.raises(UsageError, match="9 runs are too many"):
        names([tmp_path / str(i) for i in range(9)])


def history(*records: dict[str, Any]) -> History:
    steps = [{"step": i, **record} for i, record in enumerate(records)]
    return History(None, {}, {}, steps=steps)  # type: ignore[arg-type]


def test_lanes_are_as_long_as_their_time() -> None:
    step = {"time_total_s": 1.0, "time_generation_s": 0.75, "time_train_s": 0.25}
    html = timeline(
        history(
            step | {"engine_idle_share": 0.25},
            step | {"time_total_s": 3.0, "time_generation_s": 2.75, "engine_idle_share": 0.5},
        )
    )
    # widths of 1000: 0.75, 0.25, 2.75, 0.25 of 4 s; busy for 0.75 x 1 + 0.5 x 3 of 4 s
    widths = re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)"', html)
    assert widths == [
        *[("0.00", "187.50"), ("187.50", "62.50"), ("250.00", "687.50"), ("937.50", "62.50")]
    ]
    assert "engine <b>56% busy</b>" in html
    assert "step 1: engine busy 50%" in html
    assert "<li>learner" not in html


def test_a_long_run_has_as_many_columns_as_can_be_seen() -> None:
    html = timeline(history(*[{"time_total_s": 1.0, "engine_idle_share": 0.0}] * 10_000))
    assert html.count("engine busy 100%") == MOST
    assert "steps 0 to 39" in html


def test_without_times_there_is_no_timeline() -> None:
    assert timeline(history({}, {"time_total_s": None})) == ""
