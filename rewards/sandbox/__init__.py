"""Places to run untrusted programs in: ``rewards.sandbox.load("auto")``.

``protocol`` is the contract. "auto" takes the strongest backend that works on this machine, docker
then bubblewrap, and never the one without isolation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.sandbox.protocol import (
    Ending,
    Finished,
    Limits,
    Program,
    Said,
    Sandbox,
    SandboxError,
    Session,
    SessionLimits,
    SessionOver,
)

__all__ = [
    "Ending",
    "Finished",
    "Limits",
    "Program",
    "Said",
    "Sandbox",
    "SandboxError",
    "Session",
    "SessionLimits",
    "SessionOver",
    "load",
]

INSTALL = {
    "docker": "a running Docker engine, `pip install docker`, and `posttrain sandbox build`",
    "bubblewrap": "the system's package bubblewrap (`apt-get install bubblewrap`) on Linux",
}


def load(name: str = "auto", *, allow_unsafe: bool = False, **options: Any) -> Sandbox:
    """The sandbox called ``name``: "auto", "docker", "bubblewrap", or "process".

    Prints to stderr which isolation layers are active. "process" has none to speak of and needs
    ``allow_unsafe=True``; "auto" falls back to it only then. ``options`` go to the backend, and
    need its name. Raises UsageError saying what was tried, why it failed and how to install it.
    """
    if name not in ("auto", *_BACKENDS):
        raise UsageError(f"unknown sandbox {name!r}.{did_you_mean(name, ('auto', *_BACKENDS))}")
    if name == "auto" and options:
        raise UsageError(f"{sorted(options)} are options of one backend: name it, not 'auto'")
    if name == "process" and not allow_unsafe:
        raise UsageError(
            "the sandbox 'process' only limits resources: a program can read and delete what you "
            "can. Use 'bubblewrap' or 'docker', or pass allow_unsafe=True for programs you trust"
        )
    candidates = [name] if name != "auto" else ["docker", "bubblewrap"]
    if name == "auto" and allow_unsafe:
        candidates.append("process")
    failures = []
    for candidate in candidates:
        try:
            sandbox = _BACKENDS[candidate](options)
        except (SandboxError, ImportError) as error:
            failures.append(f"  {candidate}: {error}. It needs {INSTALL[candidate]}")
            continue
        print(f"sandbox {sandbox.name}: {'; '.join(sandbox.layers)}", file=sys.stderr)
        return sandbox
    raise UsageError("no sandbox to run programs in; tried:\n" + "\n".join(failures))


def _docker(options: dict[str, Any]) -> Sandbox:
    from rewards.sandbox.docker import DockerSandbox  # heavy, and not everyone has it

    return DockerSandbox(**options)


def _bubblewrap(options: dict[str, Any]) -> Sandbox:
    from rewards.sandbox.bubblewrap import BubblewrapSandbox

    return BubblewrapSandbox(**options)


def _process(options: dict[str, Any]) -> Sandbox:
    from rewards.sandbox.process import ProcessSandbox

    return ProcessSandbox(**options)


_BACKENDS: dict[str, Callable[[dict[str, Any]], Sandbox]] = {
    "docker": _docker,
    "bubblewrap": _bubblewrap,
    "process": _process,
}
