"""Decides how a data job goes: input, chain of steps, stages over files, funnel page; resumed.

In the output folder: ``job.json`` (what was asked for), ``00_steps`` and one folder for each stage
(``01_minhash``, ...), each with shards and ``counts.json``, ``documents`` (a link to the last of
them), ``funnel.html``, and datatrove's own folder ``logs`` with its completion markers and the ids
of Slurm jobs. The same call again goes on where the last one stopped: finished tasks and stages are
skipped, and while submitted jobs live nothing is given out.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.data.funnel import write_funnel
from pretrain.data.registry import Stage, find_stage, make_step
from pretrain.data.settings import DataSettings, difference, make_settings
from pretrain.errors import RunError, UsageError

if TYPE_CHECKING:
    from pretrain.data.steps import Step

_MOST_TASKS = 64
STEPS_FOLDER = "00_steps"


@dataclass(frozen=True)
class DataResult:
    """What a job left."""

    documents: Path  # the folder of the last stage: NNNNN.jsonl.gz shards
    funnel: Path  # the page
    counts: list[dict[str, Any]]  # of the chain, then of each stage
    submitted: bool = False  # tasks run on a cluster: call again when they are done


def prepare_data(**settings: Any) -> DataResult:
    """Raw pages to clean documents: the settings are those of ``DataSettings``.

    Raises UsageError (nothing written) and RunError (finished tasks and stages are kept).
    """
    job = make_settings(settings)
    from pretrain.data.executors import check_executor
    from pretrain.data.readers import list_files

    check_executor(job.executor)
    files = list_files(job.input, job.format)
    job = job.model_copy(update={"tasks": job.tasks or min(len(files), _MOST_TASKS)})
    steps = [make_step(entry) for entry in job.steps]
    stages = [find_stage(entry) for entry in job.stages]
    deadline = time.time() + job.deadline_s if job.deadline_s else None
    out = job.output.absolute()
    with _locked(out, job, files):
        try:
            done = _run_chain(job, out, files, steps, deadline)
            if not done:
                return DataResult(out / STEPS_FOLDER, out / "funnel.html", [], submitted=True)
            last, counts = _run_stages(job, out, stages, deadline)
        except OSError as error:
            raise RunError(
                f"could not write to {out}: {error.strerror or error}. Finished shards are whole; "
                "make room and give the same command again"
            ) from error
        return DataResult(last, write_funnel(out / "funnel.html", counts), counts)


def _run_chain(
    job: DataSettings,
    out: Path,
    files: list[tuple[str, Path]],
    steps: list[Step],
    deadline: float | None,
) -> bool:
    """Whether every task is done."""
    from pretrain.data.chain import Chain
    from pretrain.data.executors import living_jobs, make_executor
    from pretrain.data.progress import Progress
    from pretrain.data.readers import Reader

    folder = out / STEPS_FOLDER
    if (folder / "counts.json").is_file():
        return True
    reader = Reader(files, job.input, job.text_key)
    chain = Chain(reader, steps, folder, rejects=job.rejects, deadline=deadline)
    workers = job.workers or len(os.sched_getaffinity(0))
    executor = make_executor(
        job.executor, [chain], tasks=job.tasks, workers=min(workers, job.tasks), logs=out / "logs"
    )
    waiting = executor.get_incomplete_ranks()
    if waiting and (living := living_jobs(out / "logs")):
        raise UsageError(
            f"Slurm job {', '.join(living)} is at work in {out}, {len(waiting)} of {job.tasks} "
            "tasks are not done: call again when it is over, or cancel it"
        )
    with Progress(folder, job.tasks, stall_s=job.stall_s) as progress:
        try:
            executor.run()
        except KeyboardInterrupt:
            if progress.stalled:
                raise RunError(
                    f"no task got further for {job.stall_s:g} s: a worker may have been killed for "
                    f"memory (fewer workers), or see {out / 'logs'}; the same command goes on"
                ) from None
            raise KeyboardInterrupt("finished tasks are kept, the same command goes on") from None
    if executor.get_incomplete_ranks(skip_completed=True):
        return False
    _collect(folder, job.tasks)
    return True


def _collect(folder: Path, tasks: int) -> None:
    """The tasks' counts as the counts of the folder, which says that it is whole."""
    from pretrain.data.chain import rejects_of, remove_strays, task_file, write_json
    from pretrain.data.counts import merge

    records = [json.loads(task_file(folder, rank).read_text("utf-8")) for rank in range(tasks)]
    totals = merge(record["totals"] for record in records)
    steps = [merge(parts) for parts in zip(*(r["steps"] for r in records), strict=True)]
    if totals["in"] == 0:
        raise RunError("no document was read: the input files hold none")
    last = steps[-1] if steps else {}
    counts = {
        "stage": "steps",
        **totals,
        "characters_in": steps[0]["characters_in"] if steps else totals["characters_kept"],
        "dropped": merge(step["dropped"] for step in steps),
        "by_language": last.get("by_language", {}),
        "examples": {},
        "steps": steps,
        "reading": merge(record["reading"] for record in records),
        "files": merge((record["files"] for record in records), longest=20),
    }
    rejects = rejects_of(folder)
    for one in (folder, rejects):
        remove_strays(one)
    if rejects.is_dir():
        write_json(rejects / "counts.json", counts)
    write_json(folder / "counts.json", counts)


def _run_stages(
    job: DataSettings,
    out: Path,
    stages: Sequence[tuple[str, Stage, dict[str, Any]]],
    deadline: float | None,
) -> tuple[Path, list[dict[str, Any]]]:
    """(the last folder, counts of each)."""
    folder = out / STEPS_FOLDER
    counts = [json.loads((folder / "counts.json").read_text("utf-8"))]
    for number, (name, stage, settings) in enumerate(stages, start=1):
        if deadline is not None and time.time() > deadline:
            raise RunError(f"the deadline passed before the stage {name}; earlier ones are kept")
        target = out / f"{number:02d}_{name.split(':')[-1]}"
        if not (target / "counts.json").is_file():
            stage(folder, target, settings)
        if not (target / "counts.json").is_file():
            raise RunError(f"the stage {name} left no counts.json in {target}")
        folder = target
        counts.append(json.loads((folder / "counts.json").read_text("utf-8")))
    link = out / "documents"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    return folder, counts


@contextmanager
def _locked(out: Path, job: DataSettings, files: list[tuple[str, Path]]) -> Iterator[None]:
    """The output folder for this job alone. Raises UsageError when it is another's."""
    from pretrain.data.chain import write_json

    record = out / "job.json"
    seen = [[str(path), path.stat().st_size] for _, path in files]
    asked = {**job.model_dump(mode="json"), "files": seen}
    if record.is_file():
        earlier = json.loads(record.read_text("utf-8"))
        changed = difference(job, earlier)
        if changed is None and earlier["files"] != seen:
            changed = "the input's files are not the same"
        if changed:
            raise UsageError(f"{out} holds another job: {changed}. Choose another output folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is at work in {out}") from None
        write_json(record, asked)
        yield
