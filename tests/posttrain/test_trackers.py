"""Trackers: the real TensorBoard and trackio where installed; failures never reach the run."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from posttrain.config import GrpoConfig
from posttrain.errors import UsageError
from posttrain.trackers import Trackers, check_trackers, make_trackers

CONFIG = GrpoConfig(model="m", env="e")
RECORD = {
    **{"kind": "step", "step": 3, "loss": 0.5, "kl": None, "grad_norm": math.inf},
    "outcomes": {"wrong": 2},
}


class Fake:
    """Keeps what it is given; raises when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: list[object] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.error:
            raise self.error
        self.seen.append((step, metrics))

    def close(self) -> None:
        self.seen.append("closed")


def test_only_finite_numbers_are_mirrored() -> None:
    fake = Fake()
    with Trackers({"a": fake}, warn=print) as trackers:
        trackers.log(3, RECORD)
    assert fake.seen == [(3, {"loss": 0.5, "outcomes/wrong": 2.0}), "closed"]


def test_a_failing_tracker_is_warned_of_once_and_does_not_stop_the_others() -> None:
    warnings: list[str] = []
    good, bad = Fake(), Fake(OSError("disk full"))
    trackers = Trackers({"bad": bad, "good": good}, warnings.append)
    for step in range(5):
        trackers.log(step, RECORD)
    trackers.close()
    assert trackers.failures == {"bad": 5, "good": 0}
    assert len(warnings) == 1
    assert "bad" in warnings[0]
    assert "disk full" in warnings[0]
    assert len(good.seen) == 6


def test_a_missing_tracker_is_an_error_with_the_install_line(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        check_trackers(["wandb"])
    with pytest.raises(UsageError, match=r"unknown tracker 'mlflow'.*tensorboard"):
        check_trackers(["mlflow"])


def test_a_tracker_that_refuses_to_start_is_a_usage_error(tmp_path: Path, monkeypatch) -> None:
    def start(*arguments: object) -> Fake:
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules["posttrain.trackers"]._STARTERS, "wandb", start)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UsageError, match="wandb did not start: not logged in"):
        make_trackers(["wandb"], tmp_path, CONFIG)


def test_tensorboard_holds_the_scalars_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, steps in [(0, range(5)), (3, range(3, 6))]:
        with make_trackers(["tensorboard"], tmp_path, CONFIG, first_step=first_step) as trackers:
            for step in steps:
                trackers.log(step, {"loss": step + 0.25 + 100 * first_step})
        assert trackers.failures == {"tensorboard": 0}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(0, 0.25), (1, 1.25), (2, 2.25), (3, 303.25), (4, 304.25), (5, 305.25)]


def test_trackio_gets_the_metrics(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    with make_trackers(["trackio"], tmp_path / "my-run", CONFIG) as trackers:
        trackers.log(0, {"loss": 0.5})
        trackers.log(1, {"loss": 0.25})
    assert trackers.failures == {"trackio": 0}
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    assert [row["loss"] for row in storage.get_logs("posttrain", "my-run")] == [0.5, 0.25]
    assert capsys.readouterr().out == ""
