"""Plays benchmarks: all tasks of all suites at once, graded while others are still generated.

Finished tasks are on disk at once, so the same call again goes on after an interruption. A task's
samples have seeds of their own, a function of suite, task and sample alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain import preflight
from posttrain.chat import Chat
from posttrain.config import GrpoConfig, make_config
from posttrain.engines.choice import make_engine
from posttrain.errors import UsageError
from posttrain.evaluation.results import RESULT, summarise_benchmark, summarise_suite
from posttrain.evaluation.sources import Suite, Wanted, check_room, suites
from posttrain.event_loop import run_async
from posttrain.rollout import EpisodeLimits, Player
from posttrain.seeds import derive_seed
from posttrain.storage.provenance import provenance
from posttrain.storage.rollout_files import RolloutFiles
from posttrain.types import Engine, Group, Sampling

_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class EvalJob:
    """One evaluation of one model."""

    model: str
    wanted: Wanted
    out: Path
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    engine: str = "auto"
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for what cannot be meant."""
        if self.samples < 1 or self.max_tokens < 1:
            raise UsageError("--samples and --max-tokens are at least 1")
        if self.samples > 1 and self.temperature == 0.0:
            raise UsageError("several samples at temperature 0 are all the same: set --temperature")

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on."""
        return asdict(self) | {"out": None}


@dataclass(frozen=True, slots=True)
class Ready:
    """An evaluation that passed every check; its folder is open and no model is loaded."""

    job: EvalJob
    suites: list[Suite]
    config: GrpoConfig
    chat: Chat
    window: int
    files: RolloutFiles

    def player(self, engine: Engine, suite: Suite) -> Player:
        """What plays a suite on ``engine``."""
        sampling = Sampling(
            max_tokens=self.job.max_tokens,
            temperature=self.job.temperature,
            stop_token_ids=self.chat.stop_token_ids,
        )
        settings = self.config.grpo
        limits = EpisodeLimits(settings.max_turns, self.window, settings.episode_timeout_s)
        return Player(engine, suite.environment, self.chat, sampling, limits)


def evaluate_benchmarks(job: EvalJob, *, report: Any = print) -> dict[str, Any]:
    """Evaluate and return what eval.json holds. Raises UsageError before a model is loaded."""
    ready = make_ready(job)

    async def with_engine() -> dict[str, Any]:
        engine = make_engine(ready.config, job.out / "logs")
        try:
            await engine.start()
            return await evaluate_on(engine, ready, report=report)
        finally:
            await engine.close()

    return run_async(with_engine())


def make_ready(job: EvalJob) -> Ready:
    """Check everything and open the output folder. Raises UsageError."""
    job.check()
    chosen = suites(job.wanted)
    config = preflight.check_settings(_config(job))
    window = preflight.model_window(job.model, config)
    chat = preflight.load_chat(job.model)
    check_room(chosen, chat, window)
    return Ready(job, chosen, config, chat, window, _open(job))


async def evaluate_on(engine: Engine, ready: Ready, *, report: Any = print) -> dict[str, Any]:
    """Play, grade and sum up on an engine that runs; write and return what eval.json holds."""
    started = time.perf_counter()
    try:
        several = [_play(engine, ready, i, report) for i in range(len(ready.suites))]
        groups = await asyncio.gather(*several)
    finally:
        ready.files.close()
    result = {
        "settings": ready.job.settings,
        "provenance": provenance(),
        "seconds": time.perf_counter() - started,
        "completion_tokens": sum(
            r.n_completion_tokens for suite in groups for group in suite for r in group.rollouts
        ),
        "benchmarks": _by_benchmark(ready.suites, groups),
    }
    _write(ready.job.out / RESULT, result)
    return result


async def _play(engine: Engine, ready: Ready, number: int, report: Any) -> list[Group]:
    """One suite: what is on disk already is not played again."""
    suite, files = ready.suites[number], ready.files
    on_disk = files.load_step(number) or files.load_partial(number).values()
    done = {group.prompt_index: group for group in on_disk}
    missing = [i for i in range(len(suite.tasks)) if i not in done]
    player, samples = ready.player(engine, suite), ready.job.samples
    engine.admit(len(missing) * samples)
    seed = derive_seed(ready.job.seed, suite.name)

    async def play(index: int) -> None:
        task = suite.tasks[index]
        group = await player.group(task, seed=seed, where=(number, index), size=samples)
        files.append_group(group)
        done[index] = group

    async with asyncio.TaskGroup() as tasks:
        for index in missing:
            tasks.create_task(play(index), name=f"{suite.name} {index}")
    groups = [done[i] for i in range(len(suite.tasks))]
    if missing:
        await asyncio.to_thread(files.seal_step, number, groups)
    report(f"{suite.name}: {len(groups)} tasks done")
    return groups


def _by_benchmark(chosen: Sequence[Suite], groups: Sequence[list[Group]]) -> dict[str, Any]:
    templates: dict[str, dict[str, Any]] = {}
    for suite, several in zip(chosen, groups, strict=True):
        summary = summarise_suite(several, votes=suite.votes)
        templates.setdefault(suite.benchmark, {})[suite.template] = summary
    return {name: summarise_benchmark(by_template) for name, by_template in templates.items()}


def _config(job: EvalJob) -> GrpoConfig:
    """The engine's settings; the rest of a training job stands at its defaults."""
    rollout = {"engine": job.engine, "max_tokens": job.max_tokens}
    return make_config({"model": job.model, "env": "evaluation", "rollout": rollout})


def _open(job: EvalJob) -> RolloutFiles:
    """The output folder; one that holds another evaluation is refused."""
    kept = job.out / _SETTINGS
    told = json.loads(json.dumps(job.settings))
    if kept.is_file():
        before = json.loads(kept.read_text())
        if before != told:
            changed = [k for k in told if before.get(k) != told[k]]
            raise UsageError(
                f"{job.out} holds another evaluation ({', '.join(changed)} differ): choose --out"
            )
    elif job.out.exists() and any(job.out.iterdir()):
        raise UsageError(f"{job.out} exists and is not empty: choose another folder with --out")
    (job.out / "rollouts").mkdir(parents=True, exist_ok=True)
    _write(kept, told)
    files = RolloutFiles(job.out / "rollouts")
    files.clean()
    return files


def _write(path: Path, value: Any) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(beside, path)
