"""Decides how the image of the Docker sandbox is made, and when an image is out of date.

Two ways. ``dockerfile``: from the Dockerfile beside this file, where the engine can pull its base
and reach Debian's packages. ``debootstrap``: from a Debian root file system made on this machine
(as root, by ``debootstrap``), which needs no registry. ``auto`` tries the first, then the second.
Either way the files of the agent are added, setuid bits go, and the image carries two labels: the
digest of the agent, which must be that of the running version, and the digest of the whole recipe,
by which a second build of the same thing is known to be needless.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rewards.errors import UsageError, did_you_mean
from rewards.sandbox.docker_engine import Engine, default_hosts
from rewards.sandbox.protocol import SandboxError

IMAGE = "posttrain-sandbox"
BUILD_COMMAND = "posttrain sandbox build"
AGENT_LABEL, RECIPE_LABEL = "posttrain.sandbox.agent", "posttrain.sandbox.recipe"
SUITE = "bookworm"
BASE = "debian:bookworm-slim"
DEBOOTSTRAP_S = 1800
SCRATCH_BYTES = 4 << 30
HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
# The agent and what it imports, of this package; in the image they are below AGENT_FOLDER.
AGENT_FILES = (
    "rewards/sandbox/image/agent.py",
    "rewards/sandbox/image/frames.py",
    "rewards/sandbox/image/meter.py",
    "rewards/sandbox/image/room.py",
    "rewards/sandbox/image/run.py",
    "rewards/sandbox/image/syscalls.py",
    "rewards/sandbox/image/talking.py",
    "rewards/sandbox/seccomp.py",
)
AGENT_PACKAGES = ("rewards", "rewards/sandbox", "rewards/sandbox/image")  # empty in the image
AGENT_FOLDER = "opt/posttrain"
LANGUAGES = {  # -> Debian packages; Python is always there, since the agent is written in it
    "python": (),
    "bash": (),  # Debian's own
    "cpp": ("g++", "libc6-dev"),
    "javascript": ("nodejs",),
    "java": ("default-jdk-headless",),
}
NEEDED = ("python3",)
LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "var/log")
METHODS = ("auto", "dockerfile", "debootstrap")


@cache
def agent_digest() -> str:
    """Of the agent's files: an image with another one is out of date."""
    digest = hashlib.sha256()
    for name in AGENT_FILES:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What goes into an image."""

    packages: tuple[str, ...]  # Debian's

    @classmethod
    def of(cls, languages: Sequence[str], packages: Sequence[str] = ()) -> Recipe:
        """Raises UsageError for an unknown language or a name that is no package's."""
        for name in languages:
            if name not in LANGUAGES:
                raise UsageError(f"unknown language {name!r}.{did_you_mean(name, LANGUAGES)}")
        wanted = {*NEEDED, *packages, *(one for name in languages for one in LANGUAGES[name])}
        for name in wanted:
            if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
                raise UsageError(f"{name!r} is no name of a Debian package")
        return cls(tuple(sorted(wanted)))

    @property
    def tag(self) -> str:
        """A digest of everything here."""
        parts = [agent_digest(), SUITE, BASE, (HERE / "Dockerfile").read_text(), *LEFT_OUT]
        return hashlib.sha256("\n".join([*parts, *self.packages]).encode()).hexdigest()[:16]

    @property
    def labels(self) -> dict[str, str]:
        """By which an image is recognised."""
        return {AGENT_LABEL: agent_digest(), RECIPE_LABEL: self.tag}


def build(
    hosts: Sequence[str] = (),
    languages: Sequence[str] = ("python", "bash"),
    *,
    packages: Sequence[str] = (),
    method: str = "auto",
    base: str = BASE,
    force: bool = False,
) -> str:
    """Make the image on every host that lacks it; returns its name with the digest as its tag.

    ``packages`` are further Debian packages (``python3-numpy``). ``base`` is where the Dockerfile
    starts: a Debian image that the engine has or can pull. ``force`` makes the image anew even
    where it is there: a recipe does not say how old its packages are. What happens is printed to
    stderr. Raises UsageError, SandboxError.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}.{did_you_mean(method, METHODS)}")
    recipe = Recipe.of(languages, packages)
    name = f"{IMAGE}:{recipe.tag}"
    try:
        engines = [Engine(url) for url in hosts or default_hosts()]
        lacking = [one for one in engines if one.image_labels(name) is None or force]
    except SandboxError as error:
        raise UsageError(f"nothing was built: {error}") from error
    if method != "debootstrap":
        lacking = [one for one in lacking if not _by_dockerfile(one, recipe, base, method)]
    if lacking:
        _by_debootstrap(lacking, recipe)
    for engine in engines:
        engine.tag(name, IMAGE, "latest")
        _say(f"{engine.url}: {name}, also known as {IMAGE}:latest")
    return name


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _by_dockerfile(engine: Engine, recipe: Recipe, base: str, method: str) -> bool:
    """Whether it worked; raises when no other method may be tried."""
    _say(f"{engine.url}: building from the Dockerfile")
    arguments = {"PACKAGES": " ".join(recipe.packages), "BASE": base}
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as tar:
            tar.add(HERE / "Dockerfile", "Dockerfile")
            _add_agent(tar)
        context.seek(0)
        try:
            engine.build(context, f"{IMAGE}:{recipe.tag}", arguments, recipe.labels)
            return True
        except SandboxError as error:
            if method == "dockerfile":
                raise
            _say(f"{error}\nthat did not work; making a root file system here instead")
            return False


def _by_debootstrap(engines: Sequence[Engine], recipe: Recipe) -> None:
    """Make the root file system once, and an image of it on every host. Raises SandboxError."""
    changes = [f"LABEL {key}={value}" for key, value in recipe.labels.items()]
    with tempfile.TemporaryDirectory(prefix="posttrain-image-", dir=_scratch()) as folder:
        _say(f"debootstrap: Debian {SUITE} with {', '.join(recipe.packages)}")
        root = debootstrap(Path(folder), recipe.packages)
        packed = Path(folder, "root.tar")
        with tarfile.open(packed, "w") as tar:
            _add_root(tar, root)
            _add_agent(tar)
        for engine in engines:
            _say(f"{engine.url}: importing {packed.stat().st_size >> 20} MiB")
            engine.import_root(str(packed), IMAGE, recipe.tag, changes)


def _scratch() -> str | None:
    """Memory where it can hold a root file system (thousands of small, synced files), else None."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return None
    usable = not space.f_flag & (os.ST_NODEV | os.ST_NOEXEC)
    return "/dev/shm" if usable and space.f_bavail * space.f_frsize > SCRATCH_BYTES else None


def debootstrap(folder: Path, packages: Sequence[str]) -> Path:
    """A Debian root file system below ``folder``. Raises SandboxError saying what is missing."""
    command = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if command is None or os.geteuid() != 0:
        raise SandboxError(
            "without a registry the image needs root and Debian's debootstrap here "
            "(apt-get install debootstrap), or an engine that can pull " + BASE
        )
    root, log = folder / "root", folder / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            [
                command,
                "--variant=minbase",
                f"--include={','.join(packages)}",
                SUITE,
                str(root),  # from debootstrap's own mirror, which its settings may change
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=DEBOOTSTRAP_S,
        )
    if done.returncode != 0:
        last = log.read_text(errors="replace")[-1500:]
        raise SandboxError(f"debootstrap failed ({done.returncode}):\n{last}")
    return root


def _add_root(tar: tarfile.TarFile, root: Path) -> None:
    """All but what nobody needs in there; no device, and no setuid or setgid bit."""

    def chosen(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if entry.name in LEFT_OUT or entry.ischr() or entry.isblk():
            return None
        entry.mode &= ~0o6000
        return entry

    for path in sorted(root.iterdir()):
        tar.add(path, path.name, filter=chosen)


def _add_agent(tar: tarfile.TarFile) -> None:
    """The agent's files as the packages that they are imported from."""
    files = {name: (ROOT / name).read_bytes() for name in AGENT_FILES}
    files |= {f"{name}/__init__.py": b"" for name in AGENT_PACKAGES}
    for name, content in sorted(files.items()):
        entry = tarfile.TarInfo(f"{AGENT_FOLDER}/{name}")
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))
