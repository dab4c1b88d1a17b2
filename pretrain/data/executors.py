"""Decides where the tasks of a chain run: on this machine, on Slurm or on Ray, by datatrove.

The executor is a setting: ``"local"``, or a table with a name and the keyword arguments of
datatrove's own class, e.g. ``{name = "slurm", partition = "cpu", time = "10:00:00"}``.

Jobs that were submitted to Slurm are noted in the folder of logs, and tasks are not given out again
while one of them lives.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from pretrain.data.registry import Entry, nearest, split_entry
from pretrain.errors import RunError, UsageError

NAMES = ("local", "slurm", "ray")
_JOBS = "slurm_jobs.txt"  # an id a line
_SQUEUE_S = 60.0


def make_executor(
    entry: Entry, pipeline: list[PipelineStep], *, tasks: int, workers: int, logs: Path
) -> PipelineExecutor:
    """The executor of a setting. Raises UsageError as ``check_executor`` does."""
    kind, settings = check_executor(entry)
    settings = {"tasks": tasks, "workers": workers, "logging_dir": str(logs), **settings}
    executor: PipelineExecutor = kind(pipeline=pipeline, **settings)
    return executor


def check_executor(entry: Entry) -> tuple[Any, dict[str, Any]]:
    """(class, arguments). Raises UsageError for an unknown name or argument, a missing one, and
    where Slurm or Ray is not installed."""
    name, settings = split_entry(entry, "executor")
    if name not in NAMES:
        raise UsageError(f'there is no executor "{name}"{nearest(name, NAMES)}')
    kind = _class(name)
    known = inspect.signature(kind.__init__).parameters
    for key in settings:
        if key not in known:
            raise UsageError(f'executor {name} has no argument "{key}"{nearest(key, known)}')
    missing = [
        key
        for key, parameter in known.items()
        if parameter.default is parameter.empty
        and key not in ("self", "pipeline", "tasks", *settings)
    ]
    if missing:
        raise UsageError(f"executor {name} needs {', '.join(missing)}")
    if name == "slurm" and not shutil.which("sbatch"):
        raise UsageError("executor slurm: there is no command sbatch here")
    if name == "ray" and find_spec("ray") is None:
        raise UsageError("executor ray: the package ray is not installed")
    return kind, settings


def living_jobs(logs: Path) -> list[str]:
    """Ids of the Slurm jobs submitted from here that wait or run.

    Raises RunError when Slurm does not say.
    """
    noted = logs / _JOBS
    jobs = noted.read_text(encoding="utf-8").split() if noted.is_file() else []
    if not jobs:
        return []
    command = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_SQUEUE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"can't tell whether job {jobs[-1]} still runs: {error}") from error
    # A single job that Slurm has forgotten is an error to squeue; among others it is left out.
    if told.returncode and "Invalid job id" not in told.stderr:
        raise RunError(f"can't tell whether job {jobs[-1]} still runs: {told.stderr.strip()}")
    living = set(told.stdout.split())
    return [job for job in jobs if job in living]


class NotingSlurmExecutor(SlurmPipelineExecutor):
    """datatrove's, with the ids of its jobs on the disk as soon as each is submitted."""

    def launch_job(self) -> None:
        noted = Path(self.logging_dir.resolve_paths(_JOBS))
        noted.unlink(missing_ok=True)  # those before are over
        self.job_id_retriever = _Noting(noted, self.job_id_retriever)  # type: ignore[has-type]
        try:
            super().launch_job()
        except subprocess.CalledProcessError as error:
            raise RunError(
                f"{error.cmd[0]} took no job (exit status {error.returncode})"
            ) from error

    def launch_merge_stats(self) -> None:
        """Nothing: the next call adds up the counts; this job would wait behind a failed task
        for ever."""


class _Noting:
    """Reads the id in sbatch's answer, and notes it. The tasks' nodes unpickle it."""

    def __init__(self, noted: Path, retrieve: Callable[[str], str]) -> None:
        self._noted, self._retrieve = noted, retrieve

    def __call__(self, answer: str) -> str:
        job = self._retrieve(answer)
        with self._noted.open("a", encoding="utf-8") as file:
            file.write(f"{job}\n")
        return job


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor with its messages in the log files alone.

    The console belongs to the progress line, and Ctrl-C to the process that shows it.
    """

    def run(self) -> PipelineStats | None:
        self._started_in = os.getpid()
        logger.remove()  # what datatrove says at its start; the tasks' logs are files of their own
        if self.workers == 1:
            return self._run_in_turn()
        stats: PipelineStats | None = super().run()
        return stats

    def _run_in_turn(self) -> PipelineStats | None:
        """As datatrove's, which forks this process even for one worker, however large it is."""
        last = self.local_rank_offset + self.local_tasks
        ranks = self.get_incomplete_ranks(range(self.local_rank_offset, last))
        if not ranks:
            return None
        self.save_executor_as_json()
        pipeline, stats = self.pipeline, PipelineStats()  # type: ignore[has-type]
        for rank in ranks:
            self.pipeline = copy.deepcopy(pipeline)
            stats = stats + self._run_for_rank(rank)
        with self.logging_dir.open("stats.json", "wt") as file:
            stats.save_to_disk(file)
        return stats

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        if os.getpid() != self._started_in:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # loguru writes to what sys.stderr is at the time.
        with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()


def _class(name: str) -> Any:
    if name == "local":
        return QuietLocalExecutor
    if name == "slurm":
        return NotingSlurmExecutor
    from datatrove.executor import RayPipelineExecutor

    return RayPipelineExecutor
