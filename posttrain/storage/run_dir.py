"""What a run leaves behind: everything the resume, the report and a post-mortem need.

    config.json      the settings, what resumes changed of them, package versions, commits, seed,
                     command line; marks a run
    tokenizer.json   of the model, where it has one: the report shows tokens without the model
    metrics.jsonl    one record per line: "kind" is step, eval, benchmark, sync, skip or event
    rollouts/        every finished group, written before it is trained on (rollout_files.py)
    checkpoints/ weights/ batches/ logs/     owned by the modules that write them
    lock             held by the process that writes; the kernel lets go of it when that one dies

Steps count from 0. The ``step`` of an eval or benchmark record is the number of optimiser steps
done before it, so an evaluation after step 9 says 10; of any other record, the step during which it
happened.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from posttrain.config import GrpoConfig
from posttrain.errors import UsageError
from posttrain.storage.jsonl import JsonLines, finite, read_lines, replace_file, to_json
from posttrain.storage.provenance import provenance
from posttrain.storage.rollout_files import RolloutFiles
from posttrain.storage.run_lock import RunLock
from posttrain.types import Group

FORMAT = 1
FOLDERS = ("rollouts", "checkpoints", "logs", "weights", "batches")
_BEFORE_CONFIG = {"lock", "config.json.tmp", "tokenizer.json"}  # what a crash in create can leave


class RunDir:
    """One run's folder: ``create`` and ``resume`` lock it for writing, ``open`` only reads."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.rollouts = RolloutFiles(self.path / "rollouts")
        self.lock = RunLock(self.path)
        self._metrics: JsonLines | None = None

    @classmethod
    def create(
        cls, path: Path | str, config: BaseModel, environment: Mapping[str, Any] | None = None
    ) -> Self:
        """Start a run in a new or empty folder, and lock it.

        ``environment`` is kept in config.json: name, sizes and whatever describes the tasks.
        Raises UsageError, having written nothing, when the folder holds anything.
        """
        run = cls(path)
        run._check_free()
        run.path.mkdir(parents=True, exist_ok=True)
        run.lock.take()
        try:
            run._check_free()
            run._keep_tokenizer(config)
            replace_file(run.config_path, _manifest(config, environment))
        except BaseException:
            run.close()
            raise
        run._make_folders()
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Look at a run, live or over. Raises UsageError when ``path`` is not one."""
        run = cls(path)
        run._check_is_run()
        return run

    @classmethod
    def resume(cls, path: Path | str) -> Self:
        """Go on writing a run: lock it and remove half-written files.

        Raises UsageError when ``path`` is not a run, or another process writes it.
        """
        run = cls.open(path)
        run.lock.take()
        run._make_folders()
        run.rollouts.clean()
        return run

    # settings

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def manifest(self) -> dict[str, Any]:
        """All of config.json."""
        manifest: dict[str, Any] = json.loads(self.config_path.read_bytes())
        return manifest

    def load_config(self) -> GrpoConfig:
        """The settings in force: those it was started with, and what resumes have changed."""
        return GrpoConfig.model_validate(self.manifest()["config"])

    def change_config(
        self, config: GrpoConfig, changes: Mapping[str, tuple[Any, Any]], step: int
    ) -> None:
        """The settings are ``config`` from ``step`` on; what changed is kept beside them."""
        self._require_lock()
        manifest = self.manifest()
        manifest["config"] = config.model_dump(mode="json")
        settings = {name: {"before": old, "after": new} for name, (old, new) in changes.items()}
        entry = {"time": _now(), "step": step, "settings": settings}
        manifest["changes"] = [*manifest.get("changes", []), entry]
        replace_file(self.config_path, json.dumps(manifest, indent=2, default=str).encode() + b"\n")

    # metrics

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record; it needs "kind" and "step". "time" (Unix seconds) is added.

        NaN and infinities are written as null.
        """
        missing = [key for key in ("kind", "step") if key not in record]
        if missing:
            raise ValueError(f"a metrics record needs {missing}, got {sorted(record)}")
        self._require_lock()
        if self._metrics is None:
            self._metrics = JsonLines(self.metrics_path)
        self._metrics.append(finite({"time": round(time.time(), 3), **record}))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records that parse, in the order written; a torn last line is left out."""
        return [record for record in read_lines(self.metrics_path)[0] if isinstance(record, dict)]

    def accuracies(self, benchmark: str = "") -> dict[int, float]:
        """Accuracy by the number of steps done before it was measured: held-out, or a benchmark's.

        Where nothing could be judged there is none.
        """
        kind = "benchmark" if benchmark else "eval"
        return {
            record["step"]: record["accuracy"]
            for record in self.read_metrics()
            if record.get("kind") == kind
            and record.get("benchmark", "") == benchmark
            and record.get("accuracy") is not None
        }

    def truncate_from(self, step: int) -> None:
        """Forget the records that a resume at ``step`` (the first to be done again) writes again.

        Events stay: they happened. So do the evaluations of the weights that ``step`` starts from.
        """
        self._require_lock()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        kept = [record for record in self.read_metrics() if _stays(record, step)]
        replace_file(self.metrics_path, [to_json(record).encode() + b"\n" for record in kept])

    # rollouts

    def append_group(self, group: Group) -> None:
        """Write one finished group at once; see rollout_files.py."""
        self._require_lock()
        self.rollouts.append_group(group)

    def seal_step(self, step: int, groups: Sequence[Group]) -> None:
        """All groups of the step are finished: write them for good."""
        self._require_lock()
        self.rollouts.seal_step(step, groups)

    def load_partial(self, step: int) -> dict[int, Group]:
        """Finished groups of a step that is not sealed, by prompt index."""
        return self.rollouts.load_partial(step)

    def load_step(self, step: int) -> list[Group] | None:
        """Groups of a sealed step, or None."""
        return self.rollouts.load_step(step)

    # life cycle

    def close(self) -> None:
        """Close files and let go of the lock. Safe to call twice."""
        self.rollouts.close()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _require_lock(self) -> None:
        if not self.lock.held:
            raise RuntimeError(f"{self.path} was opened for reading; use RunDir.resume to write")

    def _check_free(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"run_dir {self.path} is a file: choose a new folder")
        if self.config_path.exists():
            raise UsageError(
                f"run_dir {self.path} already holds a run: choose another folder, "
                f"or go on with it: posttrain resume {self.path}"
            )
        others = sorted({entry.name for entry in self.path.iterdir()} - _BEFORE_CONFIG)
        if others:
            raise UsageError(
                f"run_dir {self.path} is not empty ({', '.join(others[:3])}"
                f"{', ...' if len(others) > 3 else ''}): choose a new folder"
            )

    def _check_is_run(self) -> None:
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder: give the folder of a run")
        if not self.config_path.exists():
            raise UsageError(f"{self.path} is not a run: it has no config.json")
        try:
            found = self.manifest().get("format")
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{self.config_path} can't be read: {error}") from error
        if found != FORMAT:
            raise UsageError(f"{self.path} is a run of format {found}; this version reads {FORMAT}")

    def _make_folders(self) -> None:
        for name in FOLDERS:
            (self.path / name).mkdir(exist_ok=True)

    def _keep_tokenizer(self, config: BaseModel) -> None:
        source = Path(str(getattr(config, "model", ""))) / "tokenizer.json"
        if source.is_file():
            shutil.copyfile(source, self.path / "tokenizer.json")


def _manifest(config: BaseModel, environment: Mapping[str, Any] | None) -> bytes:
    manifest = {
        "format": FORMAT,
        "created": _now(),
        "seed": getattr(config, "seed", None),
        "config": config.model_dump(mode="json"),
        "environment": dict(environment or {}),
        **provenance(),
    }
    return json.dumps(manifest, indent=2, default=str).encode() + b"\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _stays(record: Mapping[str, Any], step: int) -> bool:
    if record.get("kind") == "event":
        return True
    if record.get("kind") in ("eval", "benchmark"):
        return int(record["step"]) <= step
    return int(record["step"]) < step
