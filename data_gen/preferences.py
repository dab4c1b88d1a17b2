"""Preference pairs from a model's own answers: the better one chosen, the worse one rejected.

    for each task: K episodes -> a value for each -> best with worst, second best with second worst

The values come from a reward (a verifier: right against wrong; a reward model: its scores), from a
judge that compares every two answers in both orders, or from a judge that grades aspects.

Sources: on-policy pairs as in Llama 3 (arXiv:2407.21783, section 4.1) and Tulu 3
(arXiv:2411.15124, section 5); several models in turn and the four aspects are UltraFeedback's
(arXiv:2310.01377).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs
import rewards
from data_gen.episodes import Rules
from data_gen.errors import Unanswered, UsageError, did_you_mean
from data_gen.judging import Judging
from data_gen.pipeline import Ask, Item
from data_gen.records import Record
from data_gen.rejection import task_item
from data_gen.running import Common, Plan, run
from data_gen.sampling import Sampled, Sampling, sample
from data_gen.writing import source_rows, whole
from envs import Environment, Task
from envs.data import DataTasks
from envs.single_turn import SingleTurn
from rewards import Outcome, Score

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "preferences"
BY = ("reward", "judge", "aspects")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing(Sampling):
    """What is sampled and how it is paired. Raises UsageError for what cannot work."""

    samples: int = 4
    by: str = "reward"  # "judge": every two compared; "aspects": each graded
    pairs: int = 1  # of each task, at most
    margin: float = 0.0  # the values of a pair differ by more than this

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        whole(pairs=self.pairs)
        if self.by not in BY:
            raise UsageError(f"pairs cannot be made by {self.by!r}.{did_you_mean(self.by, BY)}")
        if self.samples < 2 or self.margin < 0:
            raise UsageError("a pair needs samples of 2 or more, and a margin from 0 on")


def preferences(
    env: Any,
    servers: Any,
    out: str | Path,
    *,
    n_tasks: int,
    reward: Any = None,
    judge: Any = None,
    **settings: Any,
) -> Dataset:
    """Sample the answers of ``n_tasks`` tasks and pair the better with the worse.

    ``env`` is an environment or a name that ``envs.load`` knows; by a judge, also prompts: texts or
    rows with ``prompt`` or ``messages``. ``reward`` replaces the environment's own score. ``judge``
    is a ``rewards.judge`` or a table of ``url``, ``model`` and its settings, whose replies are kept
    in ``out`` and never asked twice. ``settings`` are those of ``Pairing`` and ``Common``.

    Returns ``prompt``, ``chosen``, ``rejected`` (lists of messages) with both values and models.
    Raises UsageError, GenerationError.
    """
    whole(n_tasks=n_tasks)
    common, rest = Common.split(settings, Pairing)
    pairing = Pairing(**rest)
    if (pairing.by == "reward") is (judge is not None):
        raise UsageError('a judge is needed for by="judge" and by="aspects", and for nothing else')
    judging = None if judge is None else Judging(judge, aspects=pairing.by == "aspects")
    environment = _environment(env, pairing.by)
    chosen = rewards.load(reward) if isinstance(reward, str) else reward
    generator = _Preferences(
        Rules(environment, chosen, pairing.max_turns, pairing.timeout_s),
        pairing,
        common.seed,
        judging,
    )
    job = {
        "generator": GENERATOR,
        "env": environment.name,
        "n_tasks": n_tasks,
        "reward": None if chosen is None else rewards.name_of(chosen),
        "judge": None if judging is None else judging.told(),
        "seed": common.seed,
        "settings": pairing.told(),
    }
    tasks = (environment.tasks.train(i) for i in range(n_tasks))
    return run(Plan(job, map(task_item, tasks), generator, n_tasks), servers, out, common)


@dataclass(frozen=True, slots=True)
class _Valued:
    """A sample with what it is worth."""

    sampled: Sampled
    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Preferences:
    """The generator: an item is a task."""

    rules: Rules
    pairing: Pairing
    seed: int
    judging: Judging | None

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        task: Task = item.value
        found = await sample(
            self.rules, self.pairing, task, ask, seed=self.seed, generator=GENERATOR
        )
        whole_ones = [one for one in found if one.played.end not in ("length", "max_turns")]
        valued = await self._values(task, whole_ones, ask)
        pairs = pairs_of(valued, self.pairing)
        if not pairs:
            reason = "all alike" if len(valued) > 1 else "fewer than two answers to compare"
            columns = {"prompt": _prompt_of(found[0])}
            return [Record(columns, found[0].provenance, dropped=reason)]
        return [self._record(pair, i, valued) for i, pair in enumerate(pairs)]

    async def _values(self, task: Task, found: Sequence[Sampled], ask: Ask) -> list[_Valued]:
        """Those that could be judged, with their values."""
        if self.judging is None:
            scores = [one.played.judged for one in found]
        elif self.pairing.by == "aspects":
            judge, cases = self.judging.judge(ask.store), [_case(task, one) for one in found]
            every = (rewards.apply(judge, case, timeout_s=self.pairing.timeout_s) for case in cases)
            scores = list(await asyncio.gather(*every))
            if not any(score.judged for score in scores):
                raise Unanswered(f"the judge gave no grade: {scores[0].detail if scores else ''}")
        else:
            return await self._ranked(task, found, ask)
        return [
            _Valued(one, score.value, score.parts)
            for one, score in zip(found, scores, strict=True)
            if score.value is not None
        ]

    async def _ranked(self, task: Task, found: Sequence[Sampled], ask: Ask) -> list[_Valued]:
        assert self.judging is not None
        if len(found) < 2:
            return []
        judge = self.judging.judge(ask.store)
        texts = [_case(task, one).completion for one in found]
        ranking = await judge.rank(list(task.messages), texts, task.answer)
        if ranking.failed is not None:
            raise Unanswered(f"the judge gave no verdict: {ranking.failed}")
        return [
            _Valued(one, value)
            for one, value in zip(found, ranking.values, strict=True)
            if value is not None
        ]

    def _record(
        self, pair: tuple[_Valued, _Valued], number: int, valued: Sequence[_Valued]
    ) -> Record:
        better, worse = pair
        prompt = _prompt_of(better.sampled)
        columns = {
            "prompt": prompt,
            "chosen": [dict(m) for m in better.sampled.played.messages[len(prompt) :]],
            "rejected": [dict(m) for m in worse.sampled.played.messages[len(prompt) :]],
        }
        extra = {
            "chosen_score": better.value,
            "rejected_score": worse.value,
            "rejected_model": worse.sampled.provenance.model,
            "chosen_parts": json.dumps(dict(better.parts)),
            "rejected_parts": json.dumps(dict(worse.parts)),
            "judged_by": self.pairing.by,
            "n_judged": len(valued),
        }
        made_by = replace(better.sampled.provenance, sample=number)
        return Record(columns, made_by, extra=extra)


def pairs_of(valued: Sequence[_Valued], pairing: Pairing) -> list[tuple[_Valued, _Valued]]:
    """Best with worst, second best with second worst, ..., while they differ by the margin."""
    order = sorted(valued, key=lambda one: -one.value)  # stable: equals stay as sampled
    pairs = list(zip(order, reversed(order), strict=True))[: len(order) // 2][: pairing.pairs]
    return [(a, b) for a, b in pairs if a.value - b.value > pairing.margin]


def _environment(env: Any, by: str) -> Environment:
    if isinstance(env, str) and not (by != "reward" and envs.files.looks_like_file(env)):
        return envs.load(env)
    if hasattr(env, "tasks"):
        return env  # type: ignore[no-any-return]
    if by == "reward":
        raise UsageError('by="reward" takes an environment: envs.from_tasks(rows, reward=...)')
    rows = source_rows(env, "prompt", "messages")
    tasks = DataTasks(rows, name="prompts", held_out_percent=0)
    return SingleTurn("prompts", tasks, _unscored)


def _unscored(completion: str, **columns: Any) -> Score:
    """Of prompts that a judge compares the answers to; nobody reads it."""
    return Score(0.0, Outcome.WRONG)


def _prompt_of(one: Sampled) -> list[dict[str, Any]]:
    """The messages before the model's first."""
    messages = one.played.messages
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    return [dict(message) for message in messages[:first]]


def _case(task: Task, one: Sampled) -> rewards.Case:
    return envs.case_of(task, one.played.messages)
