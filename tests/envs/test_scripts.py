"""The examples of ``scripts/environments``, run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from rewards import Outcome
from rewards.sandbox import Sandbox

FOLDER = Path(__file__).parents[2] / "scripts/environments"
VALUES = {"dialogue": 1.0, "tools": 1.0, "search": 1.0, "rubric": 0.875, "games": 0.5}


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]().value


@pytest.mark.parametrize("name", VALUES)
def test_an_example_ends_with_its_score(name: str, monkeypatch, capsys) -> None:
    assert run(name, monkeypatch) == VALUES[name]
    assert "score: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["interpreter", "workspace"])
def test_an_example_in_a_sandbox(name: str, box: Sandbox, monkeypatch, capsys) -> None:
    monkeypatch.setattr("rewards.code.scoring.default_sandbox", lambda: box)
    assert run(name, monkeypatch) == 1.0
    assert Outcome.CORRECT in capsys.readouterr().out


def test_every_example_is_run() -> None:
    found = {path.stem for path in FOLDER.glob("*.py")} - {"scripted"}
    assert found == {*VALUES, "interpreter", "workspace"}
    assert max(len(path.read_text().splitlines()) for path in FOLDER.glob("[!s]*.py")) < 60
