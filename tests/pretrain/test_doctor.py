"""The doctor on this installation, on broken ones, and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain import doctor
from pretrain.cli import main
from pretrain.doctor import Finding, Status
from pretrain.doctor_probes import PROBES, Probe

pytestmark = pytest.mark.timeout(900)  # seven processes, one after another


def test_every_stage_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["broken"] == []
    tried = {f["name"]: f for f in report["sections"]["tried, without a network"]}
    assert list(tried) == [probe.name for probe in PROBES]
    assert {f["status"] for f in tried.values()} == {"ok"}
    assert "loss 5." in tried["train"]["detail"]


def test_a_broken_stage_has_its_fix_and_those_after_it_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("import a_part_of_it")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(doctor.__file__).parent.parent}")
    plan = next(probe for probe in PROBES if probe.name == "plan")
    after = Probe("later", plan.try_it, after=("plan",))
    first, second = doctor.tried((plan, after))
    assert first.status is Status.BROKEN
    assert first.detail == "ModuleNotFoundError: No module named 'a_part_of_it'"
    assert first.fix == doctor.EXTRA
    assert second == Finding("later", Status.MISSING, "not tried: needs what plan would have left")

    monkeypatch.setattr(doctor, "examine", lambda: {"tried": [first, second]})
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert f"fix: {doctor.EXTRA}" in told
    assert "1 broken: plan" in told


def test_a_missing_part_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor.version_of
    monkeypatch.setattr(
        doctor, "version_of", lambda name: None if name in ("scipy", "deepspeed") else there(name)
    )
    missing = {f.name: f for f in doctor.parts() if f.status is not Status.OK}
    assert set(missing) == {"scipy", "deepspeed"}
    assert missing["scipy"].detail == "would enable fits of scaling laws (pretrain plan --runs)"
    assert missing["deepspeed"].fix == doctor.INSTALL["deepspeed"]
    plan = next(probe for probe in PROBES if probe.name == "plan")
    assert doctor.tried((plan,)) == [
        Finding("plan", Status.MISSING, "not tried: needs scipy", doctor.EXTRA)
    ]


def test_what_nothing_works_without_is_broken_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "torch" else "1")
    assert [f.name for f in doctor.core() if f.status is Status.BROKEN] == ["torch"]


def test_a_stage_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.01)
    (found,) = doctor.tried(PROBES[:1])
    assert (found.status, found.detail) == (Status.BROKEN, "no answer within 0 s")


LISTENING = "server = socket.create_server(('127.0.0.1', 0))"


@pytest.mark.parametrize(
    ("attempt", "refused"),
    [
        ("socket.create_connection(('192.0.2.1', 80), 5)", "192.0.2.1"),
        ("urllib.request.urlopen('http://example.com', timeout=5)", "example.com"),
        ("socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))", "2001:db8::1"),
        (f"{LISTENING}; socket.create_connection(server.getsockname())", ""),
        ("socket.getaddrinfo('localhost', 80)", ""),
    ],
)
def test_a_probe_reaches_only_its_own_machine(attempt: str, refused: str) -> None:
    code = "import socket, urllib.request\nfrom pretrain.doctor_probes import refuse_network"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nrefuse_network()\n{attempt}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if refused:
        assert done.returncode == 1
        found = doctor.failure("stage", done.stderr)
        assert found.detail.endswith(f"this stage wants a network: it asked for {refused}")
    else:
        assert done.returncode == 0, done.stderr
