"""From a generator to a data set: the folder, the servers, the run, the filters, the result.

What all generators share is decided here, so that one of them is its items, its ``make`` and its
own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError, did_you_mean
from data_gen.filters import read_filters
from data_gen.pipeline import Item, Make, Outcome, generate, run_blocking
from data_gen.progress import Progress
from data_gen.publish import publish
from data_gen.servers import Server, Servers, read_servers
from data_gen.store import Store

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """Settings of every generator."""

    seed: int = 0  # decides what is sampled, with which seed
    in_flight: int = 0  # items worked on at once; 0: as many as the servers take requests
    request_timeout_s: float = 600.0  # one reply, every wait and retry included
    check: bool = True  # ask the servers for their models first
    quiet: bool = False  # no progress
    filters: Any = ("duplicates",)  # over the whole data set: data_gen.filters

    @classmethod
    def split(cls, given: Mapping[str, Any], own: type) -> tuple[Common, dict[str, Any]]:
        """These settings, and the generator's ``own``. Raises UsageError for an unknown one."""
        ours = {one.name for one in fields(cls)}
        theirs = {one.name for one in fields(own)}
        for name in given:
            if name not in ours | theirs:
                raise UsageError(f"no setting {name!r}.{did_you_mean(name, ours | theirs)}")
        mine = {name: value for name, value in given.items() if name in ours}
        return cls(**mine), {name: value for name, value in given.items() if name in theirs}


@dataclass(frozen=True, slots=True)
class Plan:
    """A generator, ready to run."""

    job: Mapping[str, Any]  # what was asked for, as it is told in job.json; "generator" is its name
    # Item, and BARRIER where later ones depend on what became of those before, which the store has
    items: Iterable[Item] | Callable[[Store], Iterable[Any]]
    make: Make
    total: int | None = None  # items, where that is known


def run(plan: Plan, servers: Any, out: str | Path, common: Common) -> Dataset:
    """Run a generator to the end and publish what it made. See ``rejection_sample``.

    ``servers`` is None for one that asks nobody.
    """
    chosen = [] if servers is None else read_servers(servers)
    read_filters(common.filters)  # a misspelt one is told now
    job = dict(plan.job) | {"models": list(dict.fromkeys(server.model for server in chosen))}
    with Store(out, job) as store:
        outcome = run_blocking(lambda: _generate(plan, chosen, store, common))
        return publish(store, job, outcome, common.filters)


async def _generate(plan: Plan, chosen: list[Server], store: Store, common: Common) -> Outcome:
    servers = Servers(chosen, timeout_s=common.request_timeout_s)
    if common.check:
        await servers.check()
    progress = Progress(plan.total, name=str(plan.job["generator"]), quiet=common.quiet)
    items = plan.items(store) if callable(plan.items) else plan.items
    return await generate(
        items, plan.make, servers, store, in_flight=common.in_flight, progress=progress
    )
