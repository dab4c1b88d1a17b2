"""A run's evaluations: its own held-out tasks, and benchmarks that it should not forget.

Decides when they are due, that what was measured before a resume is not measured again, and that a
benchmark whose score fell is told at once. Each record stands in metrics.jsonl before the loop goes
on, so a resume at a checkpoint finds all that belongs to its weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.console import Console
from posttrain.evaluation.light import play_suites
from posttrain.held_out import evaluate, read_result
from posttrain.preparation import Prepared
from posttrain.report import unsaid
from posttrain.report.hacking import forgotten
from posttrain.report.history import read_history
from posttrain.seeds import derive_seed
from posttrain.storage.run_dir import RunDir
from posttrain.types import Engine, EvalResult


@dataclass(frozen=True, slots=True)
class RunEvaluation:
    """What evaluates a run's weights, once its engine serves them."""

    ready: Prepared
    engine: Engine
    run_dir: RunDir
    console: Console
    log: Callable[[dict[str, Any]], None]

    def due(self, done: int) -> bool:
        """Whether the run is evaluated after ``done`` steps, while it goes on."""
        every = self.ready.config.evaluation.every
        wanted = bool(self.ready.held_out or self.ready.benchmarks)
        return wanted and every > 0 and done % every == 0

    async def measure(self, phase: str, done: int) -> EvalResult | None:
        """Everything that is evaluated, after ``done`` steps; what is in the records is not again.

        Returns the held-out result; None without held-out tasks.
        """
        records = [r for r in self.run_dir.read_metrics() if r.get("step") == done]
        result = await self._held_out(phase, done, records)
        await self._benchmarks(phase, done, records)
        return result

    async def _held_out(
        self, phase: str, done: int, records: list[dict[str, Any]]
    ) -> EvalResult | None:
        settings = self.ready.config.evaluation
        if not self.ready.held_out:
            return None
        known = [r for r in records if r["kind"] == "eval" and r["phase"] == phase]
        if known:
            return read_result(known[-1])
        self.console.phase(f"evaluating on {len(self.ready.held_out)} held-out tasks")
        started = time.perf_counter()
        result = await evaluate(
            self.ready.player(self.engine, settings.temperature),
            self.ready.held_out,
            samples=settings.samples,
            seed=derive_seed(self.ready.config.seed, "evaluation"),
        )
        seconds = time.perf_counter() - started
        record = dataclasses.asdict(result) | {"phase": phase, "seconds": seconds}
        self.log({"kind": "eval", "step": done, **record})
        return result

    async def _benchmarks(self, phase: str, done: int, records: list[dict[str, Any]]) -> None:
        known = {r["benchmark"] for r in records if r["kind"] == "benchmark"}
        missing = [suite for suite in self.ready.benchmarks if suite.benchmark not in known]
        if not missing:
            return
        names = ", ".join(suite.benchmark for suite in missing)
        self.console.phase(f"evaluating on {names}")
        started = time.perf_counter()
        player = self.ready.player(self.engine, temperature=0.0)
        longest = self.ready.config.evaluation.chosen.max_tokens
        found = await play_suites(player, missing, longest)
        seconds = time.perf_counter() - started  # of all: they are played at the same time
        for record in found:
            about = {"kind": "benchmark", "step": done, "phase": phase, "seconds": seconds}
            self.log(about | record)
        history = read_history(self.run_dir.path)
        for alarm in unsaid(history, forgotten(history), done):
            self.console.event(alarm["text"])
            self.log(alarm)
