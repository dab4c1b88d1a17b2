"""The RL loop.

    rollouts (engine)  ->  buffer  ->  batch  ->  learner  ->  weights  ->  engine ...

One loop for synchronous and asynchronous training: the rollouts of step s may start once the engine
serves version s - max_lag (the whole rule is in buffer.py), and each step runs in the same order:

    take rollouts -> advantages -> train -> publish and verify weights -> record -> maybe evaluate
    -> maybe checkpoint

A rollout is on disk before it is in the buffer, and a step's batch is made from what is on disk. A
resume starts at a checkpoint and walks through the very same lines: steps whose rollouts are on
disk are trained on from there, and the engine is asked only for what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from posttrain.buffer import RolloutBuffer
from posttrain.errors import RunError, first_error
from posttrain.job import Job
from posttrain.step import step_record, without_signal
from posttrain.types import Engine, Group, Learner, StepResult

_MAX_SKIPPED_STEPS = 3  # non-finite ones in a row, before the run stops


async def train(job: Job, first_step: int, stop: asyncio.Event) -> int:
    """Train from ``first_step`` to the end, or to the step at which ``stop`` is set.

    Returns the number of optimiser steps done. The weights of ``first_step`` are loaded in the
    learner and served by the engine.
    """
    settings = job.config.grpo
    buffer = RolloutBuffer(settings.max_lag)
    await buffer.advance(first_step)
    skipped_in_a_row = 0
    async with _producers(job, buffer, first_step) as producers:
        clock = _Clock(job)
        for step in range(first_step, settings.steps):
            groups = await _take(buffer, step, producers, stop)
            if groups is None:
                return step
            clock.lap("wait")
            await job.check_parity(groups)
            result = await _train_on(job, step, groups)
            clock.lap("train")
            skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
            done = step + 1
            if job.engine_needed_after(step):
                await job.publish(done)
                clock.lap("sync")
                await job.evaluate_during(done)  # before later rollouts start
                clock.lap("evaluation")
                await buffer.advance(done)
            job.log(_record(step, groups, result, clock))
            clock = _Clock(job)
            if done % job.config.checkpoint.every == 0 or done == settings.steps or stop.is_set():
                await job.checkpoints.save(done)
                clock.lap("checkpoint")
            job.checkpoints.check()
            if skipped_in_a_row >= _MAX_SKIPPED_STEPS:
                raise RunError(f"{skipped_in_a_row} steps in a row were skipped: {result.reason}")
            if stop.is_set():
                return done
    return settings.steps


async def _train_on(job: Job, step: int, groups: list[Group]) -> StepResult:
    batch = await job.credit.batch(step, groups)
    if batch is None:
        return StepResult({}, reason="no group has a signal")
    result = await job.learner.train(batch)
    if result.skipped:
        job.log({"kind": "skip", "step": step, "reason": result.reason})
    return result


def _record(step: int, groups: list[Group], result: StepResult, clock: _Clock) -> dict[str, Any]:
    record = step_record(step, groups) | dict(result.metrics)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    record |= {f"time_{name}_s": seconds for name, seconds in clock.laps.items()}
    spent = clock.total() - clock.laps.get("evaluation", 0.0)
    return record | {
        "kind": "step",
        "step": step,
        "weight_version": step + 1,
        "skipped": result.skipped,
        "time_generation_s": max((r.generation_s for r in rollouts), default=0.0),
        "time_reward_s": max((r.reward_s for r in rollouts), default=0.0),
        "time_total_s": clock.total(),
        **clock.idle_shares(),
        "completion_tokens_per_s": record["completion_tokens"] / max(spent, 1e-9),
    }


# rollouts


@asynccontextmanager
async def _producers(
    job: Job, buffer: RolloutBuffer, first_step: int
) -> AsyncIterator[asyncio.Future[Any]]:
    """One task per open step; cancelled, not awaited to the end, when the loop is left."""
    task = asyncio.ensure_future(_produce_all(job, buffer, first_step))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _produce_all(job: Job, buffer: RolloutBuffer, first_step: int) -> None:
    async with asyncio.TaskGroup() as group:
        for step in range(first_step, job.config.grpo.steps):
            stored = await asyncio.to_thread(job.run_dir.load_step, step)
            if stored is None:
                await buffer.may_start(step)
                group.create_task(_produce(job, buffer, step), name=f"rollouts of step {step}")
            else:
                await buffer.room()
                await buffer.put(step, stored)


async def _produce(job: Job, buffer: RolloutBuffer, step: int) -> None:
    """Fill one slot, with refills for groups that teach nothing (DAPO's dynamic sampling).

    Groups that an interrupted run finished already are taken from disk.
    """
    finished = job.run_dir.load_partial(step)
    tasks = list(enumerate(job.ready.plan.step(step)))
    groups = await _play(job, step, tasks, finished)
    for _ in range(job.config.grpo.max_refills):
        lacking = len(tasks) - sum(not without_signal(group) for group in groups)
        if lacking == 0:
            break
        first = len(groups)
        extra = enumerate(job.ready.plan.refill(step, first - len(tasks), lacking), start=first)
        groups += await _play(job, step, list(extra), finished)
    await asyncio.to_thread(job.run_dir.seal_step, step, groups)
    await buffer.put(step, groups)


async def _play(
    job: Job, step: int, tasks: list[tuple[int, Any]], finished: dict[int, Group]
) -> list[Group]:
    """The groups of these (prompt index, task) of a step; all at once."""
    # a lockstep engine replays the whole step, so that the batches are composed as they were
    missing = tasks if job.engine.replays else [pair for pair in tasks if pair[0] not in finished]
    size = job.config.grpo.group_size
    job.engine.admit(len(missing) * job.player.episodes_of(size))

    async def play(prompt: int, task: Any) -> None:
        group = await job.player.group(task, seed=job.config.seed, where=(step, prompt), size=size)
        if prompt not in finished:
            job.run_dir.append_group(group)
            finished[prompt] = group

    async with asyncio.TaskGroup() as group:
        for prompt, task in missing:
            group.create_task(play(prompt, task), name=f"rollouts {step}-{prompt}")
    return [finished[prompt] for prompt, _ in tasks]


async def _take(
    buffer: RolloutBuffer, step: int, producers: asyncio.Future[Any], stop: asyncio.Event
) -> list[Group] | None:
    """The step's rollouts; None when asked to stop first. A failed producer raises here."""
    wanted = asyncio.ensure_future(buffer.take(step))
    stopped = asyncio.ensure_future(stop.wait())
    pending: set[asyncio.Future[Any]] = {wanted, producers, stopped}
    try:
        while not wanted.done() and not stop.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if producers in done and (error := producers.exception()) is not None:
                raise first_error(error)
        return wanted.result() if wanted.done() else None
    finally:
        wanted.cancel()
        stopped.cancel()


class _Clock:
    """Seconds between laps, by name, since the last record; a checkpoint counts to the next one."""

    def __init__(self, job: Job) -> None:
        self.laps: dict[str, float] = {}
        self._parts: dict[str, Engine | Learner] = {"engine": job.engine, "learner": job.learner}
        self._busy = {name: part.busy_s for name, part in self._parts.items()}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._start

    def idle_shares(self) -> dict[str, float]:
        """Of the time since the last record: the share in which each of the two did nothing."""
        seconds = max(self.total(), 1e-9)
        busy = {name: part.busy_s - self._busy[name] for name, part in self._parts.items()}
        return {f"{name}_idle_share": max(0.0, 1 - s / seconds) for name, s in busy.items()}
