"""Decides where the tasks of a chain run: on this machine, on Slurm or on Ray, by datatrove.

The executor is a setting: ``"local"``, or a table with a name and the keyword arguments of
datatrove's own class, e.g. ``{name = "slurm", partition = "cpu", time = "10:00:00"}``.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from pretrain.data.registry import Entry, nearest, split_entry
from pretrain.errors import UsageError

NAMES = ("local", "slurm", "ray")


def make_executor(
    entry: Entry, pipeline: list[PipelineStep], *, tasks: int, workers: int, logs: Path
) -> PipelineExecutor:
    """The executor of a setting. Raises UsageError for an unknown name or argument."""
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
    settings = {"tasks": tasks, "workers": workers, "logging_dir": str(logs), **settings}
    executor: PipelineExecutor = kind(pipeline=pipeline, **settings)
    return executor


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor with its messages in the log files alone.

    The console belongs to the progress line, and Ctrl-C to the process that shows it.
    """

    def run(self) -> PipelineStats | None:
        self._started_in = os.getpid()
        logger.remove()  # what datatrove says at its start; the tasks' logs are files of their own
        stats: PipelineStats | None = super().run()
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
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor
    from datatrove.executor import RayPipelineExecutor

    return RayPipelineExecutor
