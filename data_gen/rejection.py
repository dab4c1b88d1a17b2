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

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs
import rewards
from data_gen.episodes import Played, Rules
from data_gen.errors import UsageError
from data_gen.keep import Candidate, Rule, apply_rules, read_rules
from data_gen.pipeline import Ask, Item
from data_gen.records import Record, content_hash
from data_gen.running import Common, Plan, run
from data_gen.sampling import Sampling, sample
from envs import Environment, Task

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "rejection"


@dataclass(frozen=True, slots=True)
class _Rejection:
    """The generator: an item is a task."""

    rules: Rules
    keep: Sequence[tuple[str, Rule]]
    sampling: Sampling
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        task: Task = item.value
        found = await sample(
            self.rules, self.sampling, task, ask, seed=self.seed, generator=GENERATOR
        )
        reasons = apply_rules(self.keep, [_candidate(one.played) for one in found])
        return [
            Record(
                columns_of(one.played),
                one.provenance,
                one.played.judged,
                dropped=reason,
            )
            for one, reason in zip(found, reasons, strict=True)
        ]


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
        "sampling": sampling.told(),
    }
    tasks = (environment.tasks.train(i) for i in range(n_tasks))
    return run(Plan(job, map(task_item, tasks), generator, n_tasks), servers, out, common)


def task_item(task: Task) -> Item:
    """The item that a task is, named by what it asks."""
    about = [task.task_id, [dict(message) for message in task.messages], str(task.answer)]
    return Item(task, content_hash(about))


def _told(keep: Any) -> Any:
    return getattr(keep, "__name__", keep)


def columns_of(played: Played) -> dict[str, Any]:
    """The conversation, and the tools where there are any, as JSON text: schemas differ in shape,
    which the columns of one file may not."""
    columns: dict[str, Any] = {"messages": [dict(message) for message in played.messages]}
    return columns | ({"tools": json.dumps(played.tools)} if played.tools else {})


def _candidate(played: Played) -> Candidate:
    wrote = [str(m.get("content") or "") for m in played.messages if m["role"] == "assistant"]
    return Candidate("\n".join(wrote), played.judged, played.n_tokens, played.end)
