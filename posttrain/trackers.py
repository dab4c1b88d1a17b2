"""Copies of the metrics for people who already use TensorBoard, trackio or wandb.

metrics.jsonl is the record of a run; a tracker only mirrors it. So a missing tracker is an error
before the run starts, and one that fails later (a full disk, a network that is gone) is warned of
once, counted, and never stops the run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel

from posttrain.errors import UsageError

PROJECT = "posttrain"


class Backend(Protocol):
    """One tracker, already started."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All trackers of a run. ``failures`` counts, by name, the calls that raised."""

    def __init__(self, backends: Mapping[str, Backend], warn: Callable[[str], None]) -> None:
        self._backends = dict(backends)
        self._warn = warn
        self.failures = dict.fromkeys(self._backends, 0)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Mirror the finite numbers; nested ones are named ``outer/inner``. Never raises."""
        numbers = dict(_numbers(metrics))
        numbers.pop("step", None)
        for name, backend in self._backends.items():
            self._guard(name, functools.partial(backend.log, step, numbers))

    def close(self) -> None:
        """Flush and end. Never raises; a second call does nothing."""
        for name, backend in self._backends.items():
            self._guard(name, backend.close)
        self._backends = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - somebody else's service; the run must go on
            self.failures[name] += 1
            if self.failures[name] == 1:
                self._warn(f"tracker {name} failed, the run goes on without it: {error!r:.300}")


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError when a tracker is unknown or not installed. Imports and writes nothing."""
    for name in names:
        if name not in _STARTERS:
            raise UsageError(f"unknown tracker {name!r}: choose from {', '.join(_STARTERS)}")
        modules = _MODULES[name]
        if not any(importlib.util.find_spec(module) for module in modules):
            raise UsageError(f"tracker {name} is not installed: pip install {modules[0]}")


def make_trackers(
    names: Sequence[str],
    run_dir: Path,
    config: BaseModel,
    *,
    first_step: int = 0,
    warn: Callable[[str], None] | None = None,
) -> Trackers:
    """Start the trackers; ``first_step`` > 0 goes on after a resume.

    Raises UsageError when one is missing or refuses to start (not logged in).
    """
    check_trackers(names)
    backends: dict[str, Backend] = {}
    warn = warn or _to_stderr
    for name in dict.fromkeys(names):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the script's
                backends[name] = _STARTERS[name](Path(run_dir), config, first_step)
        except Exception as error:
            Trackers(backends, warn).close()
            raise UsageError(f"tracker {name} did not start: {error}") from error
    return Trackers(backends, warn)


class _TensorBoard:
    def __init__(self, run_dir: Path, config: BaseModel, first_step: int) -> None:
        torchs = importlib.util.find_spec("tensorboard") is not None
        module = "torch.utils.tensorboard" if torchs else "tensorboardX"
        writer = importlib.import_module(module).SummaryWriter
        # purge_step hides what an earlier attempt wrote for the steps that are done again.
        purge = first_step if first_step > 0 else None
        self._writer = writer(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=30)
        if first_step == 0:
            self._writer.add_text("config", f"```json\n{config.model_dump_json(indent=2)}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, run_dir: Path, config: BaseModel, first_step: int) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=_run_name(run_dir),
            config=config.model_dump(mode="json"),
            resume="allow" if first_step > 0 else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # not the run's own: that one is finished again, aloud, at exit


class _Wandb:
    def __init__(self, run_dir: Path, config: BaseModel, first_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=_run_name(run_dir),
            dir=str(run_dir),
            config=config.model_dump(mode="json"),
            **self._identity(run_dir, first_step),
        )
        (run_dir / "wandb-id").write_text(self._run.id)

    @staticmethod
    def _identity(run_dir: Path, first_step: int) -> dict[str, str]:
        kept = run_dir / "wandb-id"
        if first_step == 0 or not kept.exists():
            return {}
        return {"id": kept.read_text(), "resume": "allow"}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


_MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
_STARTERS: dict[str, Callable[[Path, BaseModel, int], Backend]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def _run_name(run_dir: Path) -> str:
    return run_dir.resolve().name


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _to_stderr(text: str) -> None:
    print(f"! {text}", file=sys.stderr, flush=True)
