"""The loop itself, asynchronous and not, with an engine and a learner that only take their time.

Time is simulated: a run of minutes takes milliseconds, and the same run is the same each time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import EndReason
from posttrain.busy import Busy
from posttrain.config import make_config
from posttrain.loop import train
from posttrain.types import Completion, FinishReason, Group, Rollout, StepResult, Turn
from rewards import Outcome, Score

SAMPLES = 2  # of each group


class SimulatedTime(asyncio.SelectorEventLoop):
    """Nobody sleeps: when nothing is left to do, it is at once as late as the next timer says."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if not self._ready:
            assert timers, "everybody waits for somebody else"
            self._now = max(self._now, min(timers))
        super()._run_once()

    def run_in_executor(self, executor: Any, work: Any, *arguments: Any) -> Any:
        done = self.create_future()
        done.set_result(work(*arguments))
        return done


@dataclass
class Simulation:
    """A job as the loop sees it: one token a second from every request, ``lengths`` long."""

    lengths: dict[tuple[int, int, int], int]  # (step, prompt, sample) -> tokens
    max_lag: int
    steps: int
    prompts: int
    train_s: float = 2.0
    sync_s: float = 1.0
    version: int = 0
    started: dict[int, int] = field(default_factory=dict)  # step -> version served at its start
    served_at: dict[int, float] = field(default_factory=dict)  # version -> second
    began_at: dict[int, float] = field(default_factory=dict)  # step -> second
    trained: list[tuple[int, int, float, list[Group]]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    sealed: dict[int, list[Group]] = field(default_factory=dict)
    most_open: int = 0

    def run(self) -> float:
        """Train to the end; the seconds it took."""
        job = self._job()

        async def main() -> float:
            self._writing = asyncio.Event()
            self._writing.set()
            self.served_at[0] = 0.0
            assert await train(job, 0, asyncio.Event()) == self.steps
            return asyncio.get_running_loop().time()

        with asyncio.Runner(loop_factory=SimulatedTime) as runner:
            return runner.run(main())

    def _job(self) -> Any:
        grpo = {
            "steps": self.steps, "prompts_per_step": self.prompts, "group_size": SAMPLES,
            "max_lag": self.max_lag,
        }  # fmt: skip
        return SimpleNamespace(
            config=make_config({"model": "m", "env": "e", "grpo": grpo}),
            engine=SimpleNamespace(replays=False, admit=lambda n: None, busy_s=0.0),
            learner=self,
            player=SimpleNamespace(episodes_of=lambda size: size, group=self.group),
            credit=self,
            run_dir=SimpleNamespace(
                load_step=self.sealed.get, load_partial=lambda step: {},
                append_group=lambda group: None, seal_step=self.sealed.__setitem__,
            ),
            checkpoints=SimpleNamespace(save=self.nothing, check=lambda: None),
            ready=SimpleNamespace(plan=SimpleNamespace(step=self.tasks)),
            check_parity=self.nothing, evaluate_during=self.nothing, publish=self.publish,
            engine_needed_after=lambda step: True, log=self.records.append,
        )  # fmt: skip

    # the job's parts

    world_size = 1
    busy_s = 0.0

    async def nothing(self, *_: Any) -> None:
        """Nothing to compare, to evaluate or to save."""

    def tasks(self, step: int) -> list[str]:
        self.started[step] = self.version
        self.began_at[step] = asyncio.get_running_loop().time()
        self.most_open = max(self.most_open, len(self.started) - len(self.trained))
        return [f"task {step}-{prompt}" for prompt in range(self.prompts)]

    async def group(self, task: str, *, seed: int, where: tuple[int, int], size: int) -> Group:
        step, prompt = where
        made = [self.rollout(task, (step, prompt, sample)) for sample in range(size)]
        return Group(step, prompt, tuple(await asyncio.gather(*made)))

    async def rollout(self, task: str, where: tuple[int, int, int]) -> Rollout:
        versions = []
        for _ in range(self.lengths.get(where, 4)):
            await asyncio.sleep(1)
            await self._writing.wait()  # paused by a sync, and gone on with under new weights
            versions.append(self.version)
        n = len(versions)
        tokens, logprobs = np.zeros(n, np.int64), np.zeros(n, np.float32)
        written = Completion(tokens, logprobs, np.array(versions), FinishReason.STOP)
        turn, score = Turn(np.array([1]), written), Score(1.0, Outcome.CORRECT)
        name = "-".join(map(str, where))
        return Rollout(name, task, where[-1], (turn,), (), score, EndReason.DONE)

    async def batch(self, step: int, groups: list[Group]) -> tuple[int, list[Group]]:
        return step, groups

    async def train(self, batch: tuple[int, list[Group]]) -> StepResult:
        self.trained.append((batch[0], self.version, asyncio.get_running_loop().time(), batch[1]))
        await asyncio.sleep(self.train_s)
        return StepResult({"loss": 0.0})

    async def publish(self, version: int) -> None:
        self._writing.clear()
        await asyncio.sleep(self.sync_s)
        self.version = version
        self.served_at[version] = asyncio.get_running_loop().time()
        self._writing.set()


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    steps, prompts = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    places = [(s, p, i) for s in range(steps) for p in range(prompts) for i in range(SAMPLES)]
    lengths = {place: draw(st.sampled_from([1, 2, 3, 5, 8, 40])) for place in places}
    return Simulation(
        lengths,
        max_lag=draw(st.integers(0, 4)),
        steps=steps,
        prompts=prompts,
        train_s=draw(st.sampled_from([0.5, 3.0, 20.0])),
        sync_s=draw(st.sampled_from([0.0, 0.7, 6.0])),
    )


@given(simulations())
def test_the_staleness_rule_holds_for_every_token(sim: Simulation) -> None:
    sim.run()
    k = sim.max_lag
    assert [step for step, *_ in sim.trained] == list(range(sim.steps))  # in order, each once
    for step, version, _, groups in sim.trained:
        assert version == step  # the learner's weights are the step's
        written = [(g, r, r.turns[0].completion) for g in groups for r in g.rollouts]
        for _, rollout, completion in written:
            lags = step - completion.weight_versions
            assert lags.min() >= 0 and lags.max() <= k, rollout.rollout_id
            assert (np.diff(lags) <= 0).all()  # weights only get newer on the way
        # which data, and in what order, is no matter of who was finished first
        assert [r.rollout_id for _, r, _ in written] == [
            f"{step}-{p}-{i}" for p in range(sim.prompts) for i in range(SAMPLES)
        ]
        assert [len(c) for *_, c in written] == [
            sim.lengths[g.step, g.prompt_index, r.sample_index] for g, r, _ in written
        ]
    assert sim.most_open <= k + 1
    for step, second in sim.began_at.items():  # no earlier than allowed, and no later
        assert sim.started[step] == max(0, step - k)
        assert second == sim.served_at[max(0, step - k)]
    for record in (r for r in sim.records if r["kind"] == "step"):
        assert sum(record["lag_tokens"].values()) == record["completion_tokens"]
        assert record["lag_max"] == max(map(int, record["lag_tokens"])) <= k


def test_a_long_answer_holds_up_its_own_step_only_and_late() -> None:
    """Answers of 4 s, steps of 2 s, syncs of 1 s; then one answer of step 2 takes 9 s."""

    def trained_at(max_lag: int, tail: int = 4) -> tuple[list[float], Simulation]:
        sim = Simulation({(2, 0, 1): tail}, max_lag=max_lag, steps=5, prompts=1)
        sim.run()
        return [second for *_, second, _ in sim.trained], sim

    # one after the other: 4 s of writing, 2 of training, 1 of sync; the long answer costs its 5 s
    assert trained_at(0)[0] == [4, 11, 18, 25, 32]
    assert trained_at(0, tail=9)[0] == [4, 11, 23, 30, 37]
    # two steps ahead: slots 0 to 2 start at 0, are full at 4, and steps follow each other every
    # 3 s; of the long answer 9 s and the two syncs on its way are over at 11, not at 10
    assert trained_at(2)[0] == [4, 7, 10, 13, 16]
    seconds, sim = trained_at(2, tail=9)
    assert seconds == [4, 7, 11, 14, 17]
    tail = sim.trained[2][-1][0].rollouts[1].turns[0].completion
    # written at 1 to 5, with the sync from 6 to 7 at 7 and 8, with that from 9 to 10 at 10 and 11
    assert tail.weight_versions.tolist() == [0] * 5 + [1] * 2 + [2] * 2
    record = next(r for r in sim.records if r["step"] == 2)
    assert record["lag_tokens"] == {"0": 2, "1": 2, "2": 9}  # the short one's 4 were all by 0
    assert record["lag_mean"] == pytest.approx((0 * 2 + 1 * 2 + 2 * 9) / 13)


def test_who_has_not_worked_was_idle() -> None:
    sim = Simulation({}, max_lag=0, steps=2, prompts=1)
    sim.run()
    shares = [(r["engine_idle_share"], r["learner_idle_share"]) for r in sim.records]
    assert shares == [(1.0, 1.0)] * 2


def test_a_stopwatch_runs_while_its_part_works() -> None:
    watch = Busy()
    assert watch.seconds == 0.0
    with watch:
        early = watch.seconds
        assert watch.seconds > early
    stopped = watch.seconds
    assert watch.seconds == stopped
    watch.note(True)
    watch.note(True)  # said twice
    assert watch.seconds > stopped
    watch.note(False)
