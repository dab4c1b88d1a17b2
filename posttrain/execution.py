"""Runs a prepared job in an event loop, from before to after, and leaves no process behind.

Decides what Ctrl-C does: the first finishes the optimiser step, checkpoints and ends every child
process; the second stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from posttrain.console import Console
from posttrain.engines.choice import make_engine
from posttrain.errors import RunError
from posttrain.event_loop import run_async
from posttrain.held_out import evaluate, read_result
from posttrain.job import Job, model_folder, probe_ids, restored_base
from posttrain.learner.process import make_learner
from posttrain.loop import train
from posttrain.preparation import Prepared
from posttrain.seeds import derive_seed
from posttrain.storage.checked_files import is_full
from posttrain.storage.checkpoint import Start
from posttrain.storage.run_dir import RunDir
from posttrain.storage.status_file import StatusFile
from posttrain.trackers import make_trackers
from posttrain.types import EvalResult


def execute(ready: Prepared, run_dir: RunDir, start: Start, *, quiet: bool) -> None:
    """Train from ``start`` on, and write the report."""
    config, first = ready.config, start.step
    with (
        run_dir,
        StatusFile(run_dir.path),
        Console(config.grpo.steps, quiet, first_step=first) as console,
        make_trackers(config.trackers, run_dir.path, config, first_step=first) as trackers,
    ):
        try:
            job = Job(
                ready=ready,
                run_dir=run_dir,
                console=console,
                trackers=trackers,
                engine=make_engine(config, run_dir.logs, restored_base(config, run_dir.path)),
                learner=make_learner(config, probe_ids(ready), run_dir.path),
                start=start,
            )
            for text in start.notes:
                console.event(text)
                job.log({"kind": "event", "step": first, "event": "damaged", "text": text})
            run_async(_train(job))
        except OSError as error:
            if not is_full(error):
                raise
            raise RunError(
                f"the disk is full: {error}. Everything up to the last checkpoint is kept; make "
                f"room and go on with: posttrain resume {run_dir.path}"
            ) from error
        finally:
            _write_report(run_dir, console)


def evaluate_model(ready: Prepared, logs: Path) -> EvalResult:
    """Held-out evaluation of ``config.model`` by an engine alone."""
    config = ready.config

    async def play() -> EvalResult:
        engine = make_engine(config, logs)
        try:
            await engine.start()
            return await evaluate(
                ready.player(engine, config.evaluation.temperature),
                ready.held_out,
                samples=config.evaluation.samples,
                seed=derive_seed(config.seed, "evaluation"),
            )
        finally:
            await engine.close()

    return run_async(play())


def _write_report(run_dir: RunDir, console: Console) -> None:
    """A report that can't be drawn must not hide how the run ended, nor undo it."""
    if not run_dir.read_metrics():
        return
    from posttrain.report import new_alarms, write_report

    console.phase("writing the report")
    try:
        for alarm in new_alarms(run_dir):
            console.event(alarm["text"])
            run_dir.log(alarm)
        write_report(run_dir.path)
    except Exception as error:  # noqa: BLE001 - shutdown: the run itself is safe on disk
        console.event(f"no report: {error!r}; try again: posttrain report {run_dir.path}")


async def _train(job: Job) -> None:
    """The whole run inside the event loop: before, loop, after, export."""
    started = time.perf_counter()
    stop = asyncio.Event()
    with _ctrl_c(stop, job.console):
        async with job.running() as first_step:
            before = await job.evaluation.measure("before", 0) if first_step == 0 else None
            done = await train(job, first_step, stop)
            await job.checkpoints.save(done)
            if done < job.config.grpo.steps:
                await job.checkpoints.settle()
                job.console.event(
                    f"stopped after step {done}; go on with: posttrain resume {job.run_dir.path}"
                )
                return
            after = await job.evaluation.measure("after", done)
            await job.checkpoints.settle()
            job.checkpoints.prune()  # the last evaluation may have found the best
            await job.learner.export(model_folder(job.run_dir.path))
    before = before or _first_evaluation(job.run_dir)
    _write_summary(job, before, after, time.perf_counter() - started)


def _first_evaluation(run_dir: RunDir) -> EvalResult | None:
    found = [r for r in run_dir.read_metrics() if r["kind"] == "eval" and r["phase"] == "before"]
    return read_result(found[0]) if found else None


def _write_summary(
    job: Job, before: EvalResult | None, after: EvalResult | None, wall_s: float
) -> None:
    summary = {
        "accuracy_before": before.accuracy if before else None,
        "accuracy_after": after.accuracy if after else None,
        "steps": job.config.grpo.steps,
        "syncs_verified": job.syncs_verified,
        "logprob_gap": job.logprob_gap,
        "wall_s": round(wall_s, 1),
        "engine": job.engine.name,
        "learner": "deepspeed",
        "run_dir": str(job.run_dir.path),
    }
    (job.run_dir.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


@contextlib.contextmanager
def _ctrl_c(stop: asyncio.Event, console: Console) -> Iterator[None]:
    """First SIGINT or SIGTERM: finish the step; second: cancel. Works in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, main = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main is not None:
            main.cancel()
        console.event("stopping after this optimiser step; once more to stop at once")
        stop.set()

    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, on_signal)
    try:
        yield
    finally:
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(one)
