"""One rollout server with its life: ready, syncing, down, or given up.

Decides when a server may be asked, and what happens when it fails: it is quarantined at once,
restarted, brought to the last committed weights, verified, and only then asked again. After
``max_restarts`` within ten minutes it is given up, with the end of its log. A server elsewhere that
was out of reach is brought to these weights as it is, and restarted only if that fails.

    STARTING -> READY <-> SYNCING
                  |          |
                  +-> DOWN <-+      DOWN -> READY (restarted and refitted) or FAILED
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from posttrain.busy import Busy
from posttrain.engines import weight_sync
from posttrain.engines.client import ModelLimits, RequestTimedOut, ServerFailed, VllmClient
from posttrain.engines.routing import Pace
from posttrain.engines.weight_sync import SyncRefused, SyncRule
from posttrain.errors import RunError
from posttrain.types import Completion, Floats, Ints, Request, Snapshot
from posttrain.waits import waiting

RESTART_WINDOW_S = 600.0
HEALTH_TIMEOUT_S = 10.0  # a health check of a busy server on busy cores takes far less
_STOOD_STILL_S = 2.0  # a check that took so much longer was held up on this side
_FIRST_TOKEN_TIMEOUT_S = 120.0
_UNSYNCED = "unsynced"


class Server(Protocol):
    """``server.VllmServer`` or ``attached.AttachedServer``."""

    url: str
    elsewhere: bool  # perhaps on another machine: its files and its network are not ours

    async def start(self) -> None: ...

    def alive(self) -> bool: ...

    def tail(self, lines: int = 20) -> str: ...

    async def stop(self, *, at_once: bool = False) -> None: ...


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    SYNCING = "syncing"
    DOWN = "down"
    FAILED = "failed"


class Quarantined(Exception):
    """The replica went down while it held this request; send it again. Never leaves the engine."""


class Replica:
    """A server and its client. ``on_change`` is called after each change of state."""

    def __init__(
        self,
        server: Server,
        *,
        limits: ModelLimits,
        rule: SyncRule,
        max_restarts: int,
        on_change: Callable[[], None],
    ) -> None:
        self.server = server
        self.state = State.STARTING
        self.in_flight = 0
        self.pace = Pace()
        self.busy = Busy()  # with a request that runs: a sync pauses them
        self.restarts = 0  # over the replica's life, returns of a server elsewhere among them
        self.error: RunError | None = None  # why it was given up
        self._limits = limits
        self._rule = rule
        self._max_restarts = max_restarts
        self._on_change = on_change
        self._client: VllmClient | None = None
        self._committed: Snapshot | None = None
        self._salt = _UNSYNCED
        self._restarted_at: list[float] = []
        self._lifecycle = asyncio.Lock()  # one start, sync or recovery at a time
        self._settled = asyncio.Event()  # set while not SYNCING

    @property
    def client(self) -> VllmClient:
        if self._client is None:
            raise RunError("the rollout server has not been started")
        return self._client

    async def start(self) -> None:
        """Raises RunError when the server does not come up."""
        await self._start_server()
        self._enter(State.READY)

    async def generate(self, request: Request, timeout_s: float) -> Completion:
        """Raises Quarantined when the request must be sent again, RunError when it was refused."""
        self.in_flight += 1
        self._note_work()
        started = time.perf_counter()
        try:
            completion = await self.client.generate(request, salt=self._salt, timeout_s=timeout_s)
            self.pace.note(time.perf_counter() - started, len(completion))
            await self._settled.wait()  # a sync must be verified before its tokens count
        finally:
            self.in_flight -= 1
            self._note_work()
        if self.state is not State.READY:
            raise Quarantined(f"request {request.request_id}: {self.server.url} was quarantined")
        return completion

    async def logprobs(self, token_ids: Ints, temperature: float, timeout_s: float) -> Floats:
        """As ``Engine.logprobs``."""
        return await self.client.logprobs(
            token_ids, temperature=temperature, salt=self._salt, timeout_s=timeout_s
        )

    async def sync(self, snapshot: Snapshot, salt: str) -> float:
        """The transaction; on a refusal restart, refit and verify. Returns the probe gap."""
        async with self._lifecycle:
            self._require_not_failed()
            self._enter(State.SYNCING)
            try:
                gap = await weight_sync.apply(self.client, snapshot, self._rule, salt=salt)
                self._commit(snapshot, salt)
            except SyncRefused as refusal:
                gap = await self._restart_until_fitted(str(refusal), snapshot, salt, unfit=True)
            except BaseException:  # cancelled half-way: unfit, and nobody is left to mend it
                self._enter(State.DOWN)
                raise
            return gap

    def quarantine(self) -> None:
        """Send it nothing until ``recover`` is through; others get what it was asked."""
        if self.state is State.READY:
            self._enter(State.DOWN)
            self.client.abandon()

    async def recover(self, reason: str, seen_restarts: int) -> None:
        """Restart and refit to the last committed weights; RunError when it is given up.

        ``seen_restarts`` is ``restarts`` when the fault was met: a fault of a process that was
        replaced since needs nothing.
        """
        async with self._lifecycle:
            if self.restarts == seen_restarts and self.state is not State.FAILED:
                # A server elsewhere may only have been out of reach: its process is as it was.
                unfit = not self.server.elsewhere
                await self._restart_until_fitted(reason, self._committed, self._salt, unfit=unfit)

    async def find_fault(self, failure: ServerFailed) -> str | None:
        """Why the server must be restarted after this failure, or None when it is well.

        A request that timed out on a server that still writes tokens was only slow.
        """
        if not self.server.alive():
            return f"{failure}; the process has ended"
        if not await self.client.healthy(HEALTH_TIMEOUT_S):
            return f"{failure}; its health check fails"
        if isinstance(failure, RequestTimedOut) and not await self._writes():
            return f"{failure}; it writes no token"
        return None

    async def is_well(self) -> bool:
        """Alive and answering; what the monitor asks.

        A check during which this process stood still says nothing, and is made again.
        """
        while self.server.alive():
            began = time.monotonic()
            if await self.client.healthy(HEALTH_TIMEOUT_S):
                return True
            if time.monotonic() - began < HEALTH_TIMEOUT_S + _STOOD_STILL_S:
                return False
        return False

    async def close(self) -> None:
        self._enter(State.DOWN)
        if self._client is not None:
            await self._client.close()
        await self.server.stop()

    async def _writes(self) -> bool:
        try:
            await self.client.next_token(HEALTH_TIMEOUT_S)
        except (ServerFailed, RunError):
            return False
        return True

    async def _restart_until_fitted(
        self, reason: str, snapshot: Snapshot | None, salt: str, *, unfit: bool
    ) -> float:
        while True:
            self._enter(State.DOWN)
            if unfit:
                tail = self.server.tail()
                await self.server.stop(at_once=True)
                self._count_restart(reason, tail, snapshot)
            self.restarts += 1
            try:
                await self.client.close()
                await self._start_server()
                return await self._refit(snapshot, salt)
            except (SyncRefused, RunError) as error:
                reason, unfit = str(error), True

    async def _start_server(self) -> None:
        await self.server.start()
        self.pace.forget()
        self._client = VllmClient(self.server.url, self._limits, elsewhere=self.server.elsewhere)
        try:  # the first token takes seconds, and shows that the engine works
            name, deadline_s = "a server's first token", _FIRST_TOKEN_TIMEOUT_S
            with waiting(name, deadline_s=deadline_s, owner=self.server.url):
                await self._client.next_token(deadline_s)
        except ServerFailed as failure:
            raise RunError(f"the server came up, but {failure}\n{self.server.tail()}") from failure

    async def _refit(self, snapshot: Snapshot | None, salt: str) -> float:
        if snapshot is None:  # it died before the first sync
            self._enter(State.READY)
            return 0.0
        gap = await weight_sync.apply(self.client, snapshot, self._rule, salt=salt)
        self._commit(snapshot, salt)
        return gap

    def _commit(self, snapshot: Snapshot, salt: str) -> None:
        self._committed = snapshot
        self._salt = salt
        self._enter(State.READY)

    def _count_restart(self, reason: str, tail: str, snapshot: Snapshot | None) -> None:
        now = time.monotonic()
        self._restarted_at = [t for t in self._restarted_at if now - t < RESTART_WINDOW_S]
        why = ""
        if snapshot is not None and snapshot.path is None:
            why = "Its weights came over a collective and can't be sent to it again."
        elif len(self._restarted_at) >= self._max_restarts:
            why = (
                f"It was restarted {len(self._restarted_at)} times in the last "
                f"{RESTART_WINDOW_S / 60:g} minutes, which is all it gets."
            )
        if why:
            self.error = RunError(
                f"rollout server {self.server.url} gave up: {reason}\n{why}\n{tail}"
            )
            self._enter(State.FAILED)
            raise self.error
        self._restarted_at.append(now)

    def _require_not_failed(self) -> None:
        if self.error is not None:
            raise self.error

    def _enter(self, state: State) -> None:
        self.state = state
        if state is State.SYNCING:
            self._settled.clear()
        else:
            self._settled.set()
        self._note_work()
        self._on_change()

    def _note_work(self) -> None:
        self.busy.note(self.in_flight > 0 and self.state is State.READY)
