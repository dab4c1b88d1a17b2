"""Rejection sampling: K answers to each task, judged, and the good ones kept as SFT data.

    for each task: K episodes, over temperatures and models in turn -> scores -> rules -> records

The samples of a task are one item, finished when all of them are judged. The source is an
environment of ``envs``, so what RL trains on is what is sampled here, several turns included.

Sources: rejection-sampling fine-tuning as in Llama 2 (arXiv:2307.09288, section 3.2) and
arXiv:2308.01825; the cold start of DeepSeek-R1 (arXiv:2501.12948, section 2.3) adds a filter for
readability, which is a reward or a rule here; ReST (arXiv:2308.08998) repeats it with the model
that was trained on the last round's data (``scripts/rejection_sampling.py``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs
import rewards
from data_gen.episodes import Played, Rules, play
from data_gen.errors import UsageError
from data_gen.keep import Candidate, Rule, apply_rules, read_rules
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record, content_hash, derived_seed
from data_gen.running import Common, Plan, run
from envs import Environment, Task

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "rejection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is sampled for each task. Raises UsageError for what cannot work."""

    samples: int = 8  # of each task, temperatures and models in turn
    temperatures: Sequence[float] = (1.0,)
    max_tokens: int = 1024  # of one reply
    top_p: float | None = None
    max_turns: int = 8
    timeout_s: float = 60.0  # of one call to the environment or the reward

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "max_turns"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"{name} is a whole number from 1 on, got {getattr(self, name)!r}")
        if not self.temperatures or any(t < 0 for t in self.temperatures):
            raise UsageError(f"temperatures are numbers from 0 on, got {self.temperatures!r}")
        if self.samples > 1 and set(self.temperatures) == {0.0}:
            raise UsageError("several samples at temperature 0 are all the same")


@dataclass(frozen=True, slots=True)
class _Rejection:
    """The generator: an item is a task."""

    rules: Rules
    keep: Sequence[tuple[str, Rule]]
    sampling: Sampling
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        task: Task = item.value
        plans = list(self._plans(task, ask))
        async with asyncio.TaskGroup() as group:
            games = [group.create_task(play(self.rules, task, ask, plan)) for plan in plans]
        played = [game.result() for game in games]
        reasons = apply_rules(self.keep, [_candidate(one) for one in played])
        records = []
        for i, (one, plan, reason) in enumerate(zip(played, plans, reasons, strict=True)):
            provenance = Provenance(
                GENERATOR,
                source=task.task_id,
                model=plan["model"],
                sample=i,
                temperature=plan["temperature"],
                seed=plan["seed"],
                n_tokens=one.n_tokens,
                end=one.end,
            )
            columns = {"messages": [dict(message) for message in one.messages]}
            records.append(Record(columns, provenance, one.judged, dropped=reason))
        return records

    def _plans(self, task: Task, ask: Ask) -> Iterator[dict[str, Any]]:
        """The request settings of each sample, a function of the task and the seed."""
        pairs = itertools.product(self.sampling.temperatures, ask.servers.models)
        turns = itertools.islice(itertools.cycle(pairs), self.sampling.samples)
        for i, (temperature, model) in enumerate(turns):
            yield {
                "model": model,
                "temperature": temperature,
                "top_p": self.sampling.top_p,
                "max_tokens": self.sampling.max_tokens,
                "seed": derived_seed(self.seed, task.task_id, i),
            }


def rejection_sample(
    env: Environment | str,
    servers: Any,
    out: str | Path,
    *,
    n_tasks: int,
    reward: Any = None,
    keep: Any = ("correct", {"name": "first", "n": 4}),
    **settings: Any,
) -> Dataset:
    """Sample ``n_tasks`` training tasks of an environment, and keep the good answers.

    ``env`` is an environment or a name that ``envs.load`` knows; ``servers`` one or several
    ``Server``; ``reward`` a registered name or function in place of the environment's own score;
    ``keep`` the rules of ``data_gen.keep``. ``settings`` are those of ``Sampling`` and of
    ``data_gen.running.Common``. The same call again goes on where the last one ended.

    Returns the kept records as a ``datasets.Dataset``; the rest is in ``out``, too.
    Raises UsageError for bad input, GenerationError when the servers fail over and over.
    """
    environment = envs.load(env) if isinstance(env, str) else env
    chosen = rewards.load(reward) if isinstance(reward, str) else reward
    if type(n_tasks) is not int or n_tasks < 1:
        raise UsageError(f"n_tasks is a whole number from 1 on, got {n_tasks!r}")
    common, rest = Common.split(settings, Sampling)
    sampling = Sampling(**rest)
    generator = _Rejection(
        Rules(environment, chosen, sampling.max_turns, sampling.timeout_s),
        read_rules(keep),
        sampling,
        common.seed,
    )
    job = {
        "generator": GENERATOR,
        "env": environment.name,
        "n_tasks": n_tasks,
        "reward": None if chosen is None else rewards.name_of(chosen),
        "keep": keep if isinstance(keep, str) else [_told(one) for one in keep],
        "seed": common.seed,
        "sampling": {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__},
    }
    tasks = (environment.tasks.train(i) for i in range(n_tasks))
    return run(Plan(job, map(_item, tasks), generator, n_tasks), servers, out, common)


def _item(task: Task) -> Item:
    about = [task.task_id, [dict(message) for message in task.messages], str(task.answer)]
    return Item(task, content_hash(about))


def _told(keep: Any) -> Any:
    return getattr(keep, "__name__", keep)


def _candidate(played: Played) -> Candidate:
    wrote = [str(m.get("content") or "") for m in played.messages if m["role"] == "assistant"]
    return Candidate("\n".join(wrote), played.judged, played.n_tokens, played.end)
