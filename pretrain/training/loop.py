"""The loop: steps, spikes, checkpoints, validation, samples; and where a run goes on.

Decides what is state: the step (which is the data's cursor), the spikes so far, by how much the
rate was lowered, and which steps are passed over. With the engine's own state that is all a step
depends on, so a run that is killed and resumed is bit for bit the uninterrupted one.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain import schedules
from pretrain.errors import RunError, UsageError
from pretrain.models.experts import collapsed
from pretrain.training import checkpoints as saved
from pretrain.training.batches import Batches, TrainingStream
from pretrain.training.checkpoints import ENGINE, Checkpoints
from pretrain.training.engine import Engine
from pretrain.training.network import MicroBatch
from pretrain.training.records import Records
from pretrain.training.settings import TrainConfig
from pretrain.training.spikes import MOST_ROLLBACKS, SpikeGuard

DEAD_AFTER = 100  # steps without use, for an expert
_PATIENCE = 3  # a launcher repeats the signal that its ranks have had already


@dataclass(slots=True)
class Progress:
    """What a step depends on, beside the engine's state."""

    step: int = 0  # steps behind us
    rate_factor: float = 1.0
    rollbacks: int = 0
    passed_over: list[int] = field(default_factory=list)  # steps whose batch is not looked at


@dataclass(slots=True)
class Loop:
    """One run on one rank; all ranks do the same."""

    config: TrainConfig
    stream: TrainingStream
    engine: Engine
    checkpoints: Checkpoints
    records: Records
    peak_rate: float
    flops: Callable[[int], float]  # of a token, by length
    identity: dict[str, Any]  # what a run that resumes must share
    watch: Callable[[int], None]  # validation and samples after some steps
    progress: Progress = field(default_factory=Progress)
    guard: SpikeGuard = field(init=False)
    _asked_to_stop: int = 0
    _loads: deque[list[list[float]]] = field(default_factory=lambda: deque(maxlen=DEAD_AFTER))
    _alarms: dict[tuple[int, int | None], str] = field(default_factory=dict)  # of experts, now

    def __post_init__(self) -> None:
        self.guard = SpikeGuard(self.config.spikes)

    def run(self) -> bool:
        """Train to the end; False when asked to stop before, with a checkpoint written."""
        place = self.engine.place
        if self.progress.step == 0:
            self.save()  # what a roll-back finds before the first one
        batches = Batches(
            self.stream, place.reader, place.readers, self.config.parallel.micro_tokens
        )
        try:
            with self._signals():
                while self.progress.step < self.stream.steps:
                    if self._one(batches):
                        self.save()
                        break
        finally:
            batches.close()
            self.checkpoints.settle()
        return self.progress.step == self.stream.steps

    def share(self, step: int) -> float:
        """Of the peak rate."""
        settings, total = self.config.schedule, self.stream.steps
        warmup, floor = settings.warmup, settings.floor
        if settings.kind == "cosine":
            return schedules.cosine(step, warmup=warmup, total=total, floor=floor)
        decay = round(settings.decay * total) if settings.kind == "wsd" else 0
        return schedules.wsd(step, warmup=warmup, total=total, decay=decay, floor=floor)

    def _one(self, batches: Batches) -> bool:
        """One step and what is due after it; whether to stop."""
        progress, step = self.progress, self.progress.step
        phase = self.stream.plan_of(step)
        if step and phase is not self.stream.plan_of(step - 1):
            self.guard.forget()
        stop = False
        if step in progress.passed_over:
            self.records.say(f"step {step}: passed over, it was a spike before the roll-back")
        else:
            stop, back = self._train(step, batches)
            if back:
                self._roll_back()
                return stop
        progress.step += 1
        if progress.step % self.config.checkpoint.every == 0 or progress.step == self.stream.steps:
            self.save()
        self.watch(progress.step)
        return stop

    def _train(self, step: int, batches: Batches) -> tuple[bool, bool]:
        """(Whether some rank was asked to stop, whether to go back.)"""
        part = batches.get(step)
        device = self.engine.device
        rows = [MicroBatch.of(*micro, device) for micro in part.micro]
        rate = self.peak_rate * self.progress.rate_factor * self.share(step)
        asked = self._asked_to_stop > 0
        outcome = self.engine.train(rows, part.n_tokens, rate, self.guard.fault, asked)
        if outcome.reason:
            self.records.say(f"step {step}: skipped, {outcome.reason}")
            if not math.isfinite(outcome.loss) or not math.isfinite(outcome.grad_norm):
                self.guard.not_finite += 1
        back = self.guard.note(step, outcome.loss, applied=not outcome.reason)
        record = {
            "step": step + 1,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "rate": rate,
            "skipped": outcome.reason,
            "skipped_in_all": self.guard.skipped,
            "not_finite_in_all": self.guard.not_finite,
        }
        if outcome.expert_load:
            record["expert_load"] = self._experts(step, outcome.expert_load)
        phase = self.stream.plan_of(step).phase
        tokens = phase.rows * phase.length
        flops = tokens * self.flops(phase.length)
        self.records.step(record, tokens, flops, self.stream.tokens_before(step + 1))
        return outcome.stop, back

    def _experts(self, step: int, load: list[list[float]]) -> list[list[float]]:
        """For the step's record; says which experts have died or come back since the last step."""
        self._loads.append(load)
        found = collapsed(self._loads, steps=DEAD_AFTER)
        alarms = {(one.layer, one.expert): str(one) for one in found}
        for key in alarms.keys() - self._alarms.keys():
            self.records.say(f"step {step + 1}: {alarms[key]}")
        for key in self._alarms.keys() - alarms.keys():
            self.records.say(f"step {step + 1}: no longer: {self._alarms[key]}")
        self._alarms = alarms
        return [[round(share, 4) for share in layer] for layer in load]

    def _roll_back(self) -> None:
        """To the newest checkpoint before the first of the spikes in a row, at a lower rate."""
        spikes, before = list(self.guard.in_a_row), self.progress
        self.checkpoints.settle()
        dist.barrier()
        folder = self.checkpoints.folder
        earlier = [path for path in saved.written(folder) if saved.step_of(path) <= spikes[0]]
        if before.rollbacks == MOST_ROLLBACKS or not earlier:
            why = f"the loss diverged again after {before.rollbacks} roll-backs"
            raise RunError(f"step {spikes[-1]}: {why}; lower optimizer.rate, or look at the data")
        counted = self.guard.skipped, self.guard.not_finite  # these spikes are no past undone
        self.load(earlier[-1])
        self.guard.skipped, self.guard.not_finite = counted
        self.progress.rate_factor = before.rate_factor * self.config.spikes.rate_factor
        self.progress.rollbacks = before.rollbacks + 1
        self.progress.passed_over = sorted({*before.passed_over, *spikes})
        dist.barrier()
        if self.engine.place.rank == 0:
            saved.drop_newer(folder, self.progress.step)
        self.records.rewind(self.progress.step)
        told = {"spikes": spikes, "rate_factor": self.progress.rate_factor}
        self.records.append({"step": self.progress.step, "rolled_back": told})
        self.records.restart_clock()
        self.records.say(
            f"rolled back to step {self.progress.step} after {len(spikes)} spikes in a row from "
            f"step {spikes[0]}; the rate is now {self.progress.rate_factor:g} of what it was set to"
        )

    # state

    def save(self) -> None:
        """Hold the state and write it while training goes on."""
        self.checkpoints.settle()
        step = self.progress.step
        aside = self.checkpoints.aside(step)
        if self.engine.place.rank == 0:
            saved.clear(aside)
        dist.barrier()
        held = self.engine.state(aside / ENGINE)
        about = {
            "step": step,
            "progress": asdict(self.progress),
            "spikes": self.guard.state(),
            "share": self.share(step),
            "identity": self.identity,
        }
        self.checkpoints.save(step, held, about)

    def load(self, checkpoint: Path) -> None:
        """Take over a checkpoint, of this run or of another."""
        manifest = saved.read_manifest(checkpoint)
        self.engine.load(checkpoint / ENGINE)
        self.progress = Progress(**manifest["progress"])
        self.guard.restore(manifest["spikes"])

    def check_share(self, checkpoint: Path) -> None:
        """Whether the rate goes on without a jump. Raises UsageError."""
        manifest = saved.read_manifest(checkpoint)
        step, was = manifest["step"], manifest["share"]
        if step >= self.stream.steps:
            raise UsageError(f"{checkpoint}: step {step}, and this run has {self.stream.steps}")
        now = self.share(step)
        if step and abs(now - was) > 1e-6:
            raise UsageError(
                f"{checkpoint}: the rate there is {was:.3g} of its peak, this run's schedule has "
                f"{now:.3g}: start from a checkpoint of the stable phase of a wsd schedule"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step; insisting ends it at once."""

        def note(*_: Any) -> None:
            self._asked_to_stop += 1
            if self._asked_to_stop > _PATIENCE:
                raise KeyboardInterrupt("no checkpoint was written at the end")

        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, note)
        except ValueError:
            pass  # not in the main thread: no signal arrives here
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
