"""One training job: its parts, put together once, and what the loop asks of them as a whole.

Everything that can be refused is refused in ``prepare``, before a model is loaded or a file is
written. ``running`` starts the engine and the learner at the same time, proves the weight sync with
a canary, and ends both on every path.
"""

from __future__ import annotations

import asyncio
import dataclasses
import resource
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.algorithm import Algorithm
from posttrain.batching import attention_at
from posttrain.config import GrpoConfig
from posttrain.console import Console
from posttrain.engines.logprob_server import SENTENCE, LogprobServer
from posttrain.errors import RunError, first_error
from posttrain.learner.engine_settings import choices_text
from posttrain.model.expert_load import collapse_text
from posttrain.preparation import Prepared
from posttrain.rollout import Player
from posttrain.run_evaluation import RunEvaluation
from posttrain.step import Credit
from posttrain.storage.checkpoint import Checkpoints, Start
from posttrain.storage.run_dir import RunDir
from posttrain.trackers import Trackers
from posttrain.types import Engine, Group, Ints, Learner, Rollout

# The start-up canary: weights in which every tensor is multiplied by 1 + noise of this size are
# synced and verified, and then the real ones. An optimiser step moves weights too little for a
# stale tensor to show on the probe; this does. Measured on the quickstart's model: with noise 1.0,
# leaving any one of its tensors stale moves the probe by 0.6 or more, and bfloat16 rounding by
# 0.15; with noise 0.05 some move it by 0.007. In a random 28-layer model a middle layer's tensor
# moves it by 0.03 to 0.13 only: there the canary is sure of embeddings and head, and the
# transport's own check (every tensor of the file arrived) has to stand for the rest.
CANARY = 1.0
_CANARY_ALLOWANCE = 6.0
# Of an adapter only A and B are moved. On the same model, rank 16 on all linear layers: any one of
# its 42 tensors stale moves the probe by 0.13 or more (the least: queries and keys of the last
# layer), rounding by 0.03.
_ADAPTER_ALLOWANCE = 2.0
# A merged adapter is rounded once more than the learner's: on the same model that took the gap of
# good syncs from 0.03 to between 0.03 and 0.05.
_MERGED_ALLOWANCE = 2.0
_CANARY_VERSION = -1
_PARITY_ROLLOUTS = 16  # completions compared at start-up
_PROBE_TOKENS = 256


@dataclass(slots=True)
class Job:
    """The parts of a job, and what only the whole knows."""

    ready: Prepared
    run_dir: RunDir
    console: Console
    trackers: Trackers
    engine: Engine
    learner: Learner
    start: Start
    checkpoints: Checkpoints = field(init=False)
    player: Player = field(init=False)
    credit: Credit = field(init=False)
    evaluation: RunEvaluation = field(init=False)
    syncs_verified: int = 0
    logprob_gap: float | None = None  # at start-up, on real completions
    _parity_checked: bool = False
    _restarts: int = 0

    def __post_init__(self) -> None:
        algorithm = Algorithm.of(self.config.algorithm)
        servers = {
            role: LogprobServer(url, role, self.config.rollout.request_timeout_s)
            for role, url in algorithm.servers.items()
        }
        player = self.ready.player(self.engine, self.config.rollout.temperature)
        self.player = dataclasses.replace(player, greedy=algorithm.greedy)
        attention = attention_at(self.config.model)
        self.credit = Credit(self.config, algorithm, self.learner, servers, attention)
        self.evaluation = RunEvaluation(
            self.ready, self.engine, self.run_dir, self.console, self.log
        )
        self.checkpoints = Checkpoints(
            folder=self.run_dir.checkpoints,
            keep=self.config.checkpoint.kept,
            learner=self.learner,
            accuracies=partial(self.run_dir.accuracies, self.config.checkpoint.kept.by),
            describe=self._rollouts_ahead,
        )

    @property
    def config(self) -> GrpoConfig:
        return self.ready.config

    # life cycle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Engine and learner up, weights in both; yields the step to go on from."""
        try:
            first_step = await self._start()
            yield first_step
        finally:
            self.console.phase("ending engine and learner")
            await self.checkpoints.close()
            for server in self.credit.servers.values():
                await server.close()
            await asyncio.gather(self.engine.close(), self.learner.close(), return_exceptions=True)

    async def _start(self) -> int:
        for server in self.credit.servers.values():
            await server.check(self.ready.chat.encode(SENTENCE))
        self.console.phase(f"starting {self.engine.name} and the learner")
        base = restored_base(self.config, self.run_dir.path)
        try:
            if base is not None:  # the engine starts from what the learner writes
                await self._start_learner(base)
                await self.engine.start()
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.engine.start(), name="start engine")
                    group.create_task(self._start_learner(), name="start learner")
        except BaseExceptionGroup as several:
            raise first_error(several) from several
        await self._tell_choices()
        if self.engine.transport == "nccl":
            await self.learner.attach(self.engine.urls)
        self.console.phase("proving the weight sync")
        await self._sync(_CANARY_VERSION, perturb=CANARY)
        await self.publish(self.start.step)
        return self.start.step

    async def _start_learner(self, base: Path | None = None) -> None:
        await self.learner.start()
        if base is not None and not base.exists():
            # Before a checkpoint is loaded: B is zero, so what is merged is the base alone.
            await self.learner.export(base)
            shutil.rmtree(base.with_name(base.name + "-adapter"))
        if self.start.learner is not None:
            await self.learner.load(self.start.learner)

    async def _tell_choices(self) -> None:
        chosen = await self.learner.choices()
        for line in choices_text(chosen).splitlines():
            self.console.note(line)
        record = {"kind": "event", "step": self.start.step, "event": "learner"}
        self.log(record | {"choices": chosen})

    # weights

    async def publish(self, version: int) -> None:
        """Bring the engine to the learner's weights, verified; they become ``version``."""
        await self._sync(version, perturb=0.0)
        self.syncs_verified += 1

    async def _sync(self, version: int, perturb: float) -> None:
        started = time.perf_counter()
        snapshot = await self.learner.publish(version, self.run_dir.weights, perturb=perturb)
        publish_s = time.perf_counter() - started
        if perturb > 0:
            allowance = _ADAPTER_ALLOWANCE if snapshot.is_adapter else _CANARY_ALLOWANCE
            snapshot = dataclasses.replace(snapshot, gap_allowance=allowance)
        elif self.config.learner.lora is not None and not snapshot.is_adapter:
            snapshot = dataclasses.replace(snapshot, gap_allowance=_MERGED_ALLOWANCE)
        report = await self.engine.sync(snapshot)
        self._note_restarts(version)
        record = dataclasses.asdict(report) | {"publish_s": publish_s, "canary": perturb > 0}
        self.log({"kind": "sync", "step": version, **record})
        for old in self.run_dir.weights.iterdir():
            if snapshot.path is None or old == snapshot.path:
                continue
            if old.is_dir():  # an adapter
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)

    def _note_restarts(self, step: int) -> None:
        if self.engine.restarts > self._restarts:
            self._restarts = self.engine.restarts
            text = f"a rollout server was restarted and refitted ({self._restarts} in all)"
            self.console.event(text)
            self.log({"kind": "event", "step": step, "event": "restart", "text": text})

    def engine_needed_after(self, step: int) -> bool:
        """Whether anything will be generated by the weights that ``step`` leaves."""
        settings, done = self.config.grpo, step + 1
        if done == settings.steps or self.evaluation.due(done):
            return True
        ahead = range(done, min(done + settings.max_lag + 1, settings.steps))
        sealed = set(self.run_dir.rollouts.sealed_steps())
        return any(later not in sealed for later in ahead)

    async def check_parity(self, groups: Sequence[Group]) -> None:
        """Once per process: engine and learner must agree on real completions.

        Compared are the tokens that the learner's present weights wrote. Where there are none, as
        in rollouts read back from disk, the next step is looked at. Raises RunError, before
        anything is trained on them, when they don't agree.
        """
        if self._parity_checked:
            return
        step = groups[0].step
        fresh = [
            r.turns[-1] for g in groups for r in g.rollouts if r.turns and _written_at(step, r)
        ]
        turns = fresh[:: max(1, len(fresh) // _PARITY_ROLLOUTS)][:_PARITY_ROLLOUTS]
        if not turns:
            return
        self._parity_checked = True
        sequences = [np.concatenate([t.prompt_ids, t.completion.token_ids]) for t in turns]
        learner = await self.learner.logprobs(sequences, self.config.rollout.temperature)
        gaps = [
            np.abs(logprobs[-len(c) :] - c.logprobs)[c.weight_versions == step]
            for logprobs, c in zip(learner, (turn.completion for turn in turns), strict=True)
        ]
        gap = float(np.concatenate(gaps).mean())
        self.logprob_gap = gap
        self.log({"kind": "event", "step": step, "event": "parity", "logprob_gap": gap})
        if not gap <= self.config.sync.max_probe_gap:
            raise RunError(
                f"engine and learner disagree: mean log-prob gap {gap:.4f} over "
                f"{len(turns)} completions, the limit (sync.max_probe_gap) is "
                f"{self.config.sync.max_probe_gap:g}. Training on it would be biased"
            )

    # evaluation

    async def evaluate_during(self, done: int) -> None:
        """Evaluate when it is due after ``done`` steps; the end is the caller's."""
        if self.evaluation.due(done) and done < self.config.grpo.steps:
            await self.evaluation.measure("during", done)

    # small things

    def _rollouts_ahead(self, step: int) -> dict[str, Any]:
        """What the buffer holds when ``step`` steps are done: all of it is on disk."""
        rollouts = self.run_dir.rollouts
        return {
            "rollouts": {
                "finished_steps": [s for s in rollouts.sealed_steps() if s >= step],
                "steps_under_way": [s for s in rollouts.partial_steps() if s >= step],
            }
        }

    def log(self, record: dict[str, Any]) -> None:
        """One record to metrics.jsonl, the console and the trackers."""
        kind, step = record["kind"], record["step"]
        if kind == "step":
            record["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            self.console.step(record)
            if text := collapse_text(record):
                self.console.event(text)
        elif kind == "eval":
            self.console.evaluation(record)
        elif kind == "benchmark":
            self.console.benchmark(record)
        elif kind == "skip":
            self.console.event(f"step {step} was skipped: {record['reason']}")
        self.run_dir.log(record)
        # a tracker has one space of names: benchmarks would write over each other
        mirrored = {f"benchmark/{record['benchmark']}": record} if kind == "benchmark" else record
        self.trackers.log(step, mirrored)


def probe_ids(ready: Prepared) -> Ints:
    """The fixed sequence on which every sync is verified: the first prompts, end to end.

    Real text, because on random ids a model is so unsure of everything that log-probs move little.
    """
    prompts = [ready.chat.prompt_ids(task.messages) for task in ready.plan.step(0)]
    return np.concatenate(prompts)[: min(_PROBE_TOKENS, ready.window - 1)]


def _written_at(version: int, rollout: Rollout) -> bool:
    """Whether these weights wrote a token of its last turn."""
    return bool((rollout.turns[-1].completion.weight_versions == version).any())


def restored_base(config: GrpoConfig, run: Path) -> Path | None:
    """Where the engine's base weights lie, if they are not the model's: see ``quantised``."""
    lora = config.learner.lora
    quantised = lora is not None and lora.bits is not None and lora.sync == "adapter"
    return run / "base" if quantised else None


def model_folder(run: Path) -> Path:
    """Where a run leaves its trained model."""
    return run / "model"
