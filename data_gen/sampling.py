"""K episodes of one task: how many, with which model, temperature and seed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_gen.episodes import Played, Rules, play
from data_gen.errors import UsageError
from data_gen.pipeline import Ask
from data_gen.records import Provenance, derived_seed
from envs import Task

_OURS = frozenset(
    ("model", "messages", "tools", "temperature", "top_p", "max_tokens", "seed", "n", "stream")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is sampled for each task. Raises UsageError for what cannot work."""

    samples: int = 8  # of each task, temperatures and models in turn
    temperatures: Sequence[float] = (1.0,)
    max_tokens: int = 1024  # of one reply
    top_p: float | None = None
    max_turns: int = 8
    timeout_s: float = 60.0  # of one call to the environment or the reward
    # More of each request, as the server knows it: {"top_k": 20, "chat_template_kwargs": ...}
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "max_turns"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"{name} is a whole number from 1 on, got {getattr(self, name)!r}")
        if not self.temperatures or any(t < 0 for t in self.temperatures):
            raise UsageError(f"temperatures are numbers from 0 on, got {self.temperatures!r}")
        if self.samples > 1 and set(self.temperatures) == {0.0}:
            raise UsageError("several samples at temperature 0 are all the same")
        if taken := sorted(_OURS & set(self.extra)):
            raise UsageError(f"extra cannot hold {', '.join(taken)}: that is decided elsewhere")

    def plans(self, task: Task, models: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
        """The request settings of each sample, a function of the task and the seed."""
        turns = itertools.cycle(itertools.product(self.temperatures, models))
        for i, (temperature, model) in enumerate(itertools.islice(turns, self.samples)):
            yield {
                "model": model,
                "temperature": temperature,
                "top_p": self.top_p,
                "max_tokens": self.max_tokens,
                "seed": derived_seed(seed, task.task_id, i),
                **self.extra,
            }

    def told(self) -> dict[str, Any]:
        """For job.json."""
        told = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return {name: value for name, value in told.items() if name != "extra" or value}


@dataclass(frozen=True, slots=True)
class Sampled:
    """One episode and where it comes from."""

    played: Played
    provenance: Provenance


async def sample(
    rules: Rules, sampling: Sampling, task: Task, ask: Ask, *, seed: int, generator: str
) -> list[Sampled]:
    """All episodes of a task, played at once. Raises Unanswered, in a group of errors."""
    plans = list(sampling.plans(task, ask.servers.models, seed))
    async with asyncio.TaskGroup() as group:
        games = [group.create_task(play(rules, task, ask, plan)) for plan in plans]
    return [
        Sampled(game.result(), _provenance(game.result(), plan, generator, task.task_id, i))
        for i, (game, plan) in enumerate(zip(games, plans, strict=True))
    ]


def _provenance(
    played: Played, plan: dict[str, Any], generator: str, source: str, number: int
) -> Provenance:
    return Provenance(
        generator,
        source=source,
        model=plan["model"],
        sample=number,
        temperature=plan["temperature"],
        seed=plan["seed"],
        n_tokens=played.n_tokens,
        end=played.end,
    )
