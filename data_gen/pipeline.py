"""Runs a generator over its items: many at once, durable, with progress, and resumable.

A generator is an async function ``make(item, ask) -> records``. It asks models through ``ask`` and
must be a function of its item and the replies, because a resume calls it again and answers from the
replies on disk. The items come from an iterator that is read as they are taken, so a large input is
never in memory as a whole; of an item only its key stays.

An item fails when a request of it got no reply or the generator raised; it is counted, kept in the
retry file, and the run goes on. ``MAX_FAILURES`` in a row stop it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from data_gen.errors import GenerationError, Unanswered, UsageError
from data_gen.progress import Progress
from data_gen.records import Record, content_hash
from data_gen.servers import Message, Reply, Servers
from data_gen.store import Store

MAX_FAILURES = 50  # in a row
BARRIER = object()  # among the items: those after it are read when those before it have ended


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of work: finished as a whole, found again by ``key``."""

    value: Any  # whatever the generator takes
    key: str  # a hash of what it is: content_hash(...)


@dataclass(slots=True)
class Ask:
    """What a generator asks models with. Replies on disk are not asked again."""

    servers: Servers
    store: Store
    cached: int = 0

    async def __call__(
        self,
        messages: Sequence[Message],
        *,
        model: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        **sampling: Any,
    ) -> Reply:
        """The reply to a conversation; ``model`` may be left out where only one is served.

        ``sampling`` goes into the request as it is: temperature, max_tokens, seed, ... Raises
        Unanswered.
        """
        body: dict[str, Any] = {"model": model or self._only_model(), "messages": list(messages)}
        body |= {name: value for name, value in sampling.items() if value is not None}
        body |= {"tools": list(tools)} if tools else {}
        key = content_hash(body)
        if key in self.store.replies:
            self.cached += 1
            kept = self.store.replies.get(key)
            return Reply(**kept | {"tool_calls": tuple(kept["tool_calls"])})
        reply = await self.servers.ask(body)
        fields = {name: getattr(reply, name) for name in Reply.__dataclass_fields__}
        self.store.replies.put(key, fields)
        return reply

    def _only_model(self) -> str:
        if len(self.servers.models) > 1:
            raise UsageError(f"several models are served, name one: {self.servers.models}")
        return self.servers.models[0]


Make = Callable[[Item, Ask], Awaitable[Sequence[Record]]]


@dataclass(slots=True)
class Outcome:
    """How a run went."""

    keys: list[str] = field(default_factory=list)  # of all items, in the order of the input
    failed: Counter[str] = field(default_factory=Counter)  # reason -> items
    counts: Counter[str] = field(default_factory=Counter)  # requests, replies, tokens, ...
    cost: float = 0.0


@dataclass(slots=True)
class _Run:
    make: Make
    ask: Ask
    progress: Progress
    outcome: Outcome = field(default_factory=Outcome)
    failures_in_a_row: int = 0

    async def all(self, items: Iterable[Any], in_flight: int) -> None:
        """Every item that is not finished, ``in_flight`` at once."""
        places = asyncio.Semaphore(in_flight)
        source, seen = iter(items), set()
        async with asyncio.TaskGroup() as group:
            while (item := await asyncio.to_thread(next, source, None)) is not None:
                if item is BARRIER:
                    await _all_free(places, in_flight)
                    continue
                if item.key in seen:
                    continue  # the same item twice is done once
                seen.add(item.key)
                self.outcome.keys.append(item.key)
                if item.key in self.ask.store.items:
                    self.progress.finished_before()
                    continue
                await places.acquire()
                group.create_task(self._one(item, places))

    async def _one(self, item: Item, places: asyncio.Semaphore) -> None:
        try:
            records = await self.make(item, self.ask)
            self.ask.store.finish(item.key, records)
            self.failures_in_a_row = 0
            self.progress.finished(records)
        except Exception as raised:  # noqa: BLE001  boundary: a user's reward, environment or rule
            error = _first(raised)  # a generator may have a group of tasks
            if isinstance(error, UsageError | OSError):
                raise error from None  # bad input, a full disk: every other item would meet it
            self._failed(item, error)
        finally:
            places.release()

    def _failed(self, item: Item, error: BaseException) -> None:
        reason = detail = str(error)
        if not isinstance(error, Unanswered):
            reason = f"{type(error).__name__}: {error}"
            detail = "".join(traceback.format_exception(error))[-2000:]
        self.outcome.failed[reason[:200]] += 1
        self.ask.store.fail(item.key, detail)
        self.progress.failed()
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= MAX_FAILURES:
            raise GenerationError(
                f"{MAX_FAILURES} items in a row failed, the last: {detail}\nThe same call goes on "
                f"from what is finished in {self.ask.store.folder}"
            )


async def generate(
    items: Iterable[Any],
    make: Make,
    servers: Servers,
    store: Store,
    *,
    in_flight: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Run ``make`` over the items, among them ``BARRIER``.

    Raises GenerationError when too many fail in a row.

    ``in_flight`` 0 works at as many items as the servers take requests.
    """
    ask = Ask(servers, store)
    run = _Run(make, ask, progress or Progress(total=None, quiet=True))
    run.progress.servers = servers
    try:
        with run.progress:
            await run.all(items, in_flight or servers.concurrency or 1)
    except BaseExceptionGroup as several:
        raise _first(several) from several
    finally:
        await servers.close()
    run.outcome.counts = servers.counts + Counter(cached_replies=ask.cached)
    run.outcome.cost = servers.cost
    return run.outcome


async def _all_free(places: asyncio.Semaphore, n: int) -> None:
    """Wait until nobody holds a place; each is given back whatever became of the item."""
    for _ in range(n):
        await places.acquire()
    for _ in range(n):
        places.release()


def run_blocking(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run to the end from plain code, also where an event loop runs already, as in a notebook."""

    async def whole() -> Any:
        return await work()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(whole())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, whole()).result()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
