"""Finds a user's own folder that Python would import instead of one of our packages.

Our packages have short names, ``envs`` and ``rewards`` among them, and users keep folders called
the same. Python puts the script's folder, or with ``-m`` the working directory, before everything
installed, so such a folder wins: in the user's process, and in the engine's and the learner's
processes that are started in the same directory. The symptom would be an ImportError far from its
cause; this names the folder to rename instead.

Only the standard library is used, and nothing is imported to find out: this runs before all else,
when ``posttrain`` itself is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGES = ("posttrain", "rewards", "envs", "data_gen", "pretrain")
ROOT = Path(__file__).resolve().parent.parent  # the folder that holds our packages


def find_shadows(path: Sequence[str]) -> list[Path]:
    """Files and folders that would be imported in place of our packages with this ``sys.path``."""
    shadows = []
    for name in PACKAGES:
        ours = ROOT / name
        if not (ours / "__init__.py").is_file():
            continue  # a package that this version does not have can't be shadowed
        # None: only an editable install's own finder, which Python asks last, knows the name.
        found = _location(PathFinder.find_spec(name, list(path)))
        # A benchmark of ours that is named after a package sees to itself.
        if found is not None and found != ours and found.parent != ROOT / "scripts" / "bench":
            shadows.append(found)
    return shadows


def check_import_path() -> None:
    """Raise when this very process would import something else; runs on ``import posttrain``."""
    _refuse(find_shadows(sys.path))


def check_shadowing() -> None:
    """Raise when a process started in the working directory would import something else.

    The engine's and the learner's processes are: this is for the start of a job.
    """
    _refuse(find_shadows([str(Path.cwd()), *sys.path]))


def _refuse(shadows: Sequence[Path]) -> None:
    if not shadows:
        return
    try:
        from posttrain.errors import UsageError
    except ImportError:  # it comes from rewards, which may be what is hidden
        raise ImportError(explain(shadows)) from None
    raise UsageError(explain(shadows))


def explain(shadows: Sequence[Path]) -> str:
    """What is wrong and what to do, in one sentence for each shadow."""
    return "; ".join(
        f"{shadow} hides the package {shadow.stem!r} of posttrain: Python would import it instead "
        f"of {ROOT / shadow.stem}. Rename it (for example to my_{shadow.name})"
        for shadow in shadows
    )


def _location(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package, or the file of a module."""
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None
