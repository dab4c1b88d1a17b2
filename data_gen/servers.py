"""Asks any OpenAI-compatible chat servers, several at once, and counts what it costs.

Which server: of those that serve the model asked for and are not resting, the one with the fewest
requests in flight over its weight. A server that gave no reply (``rewards.chat_server`` says what
is tried again before that) rests for 5 s, 10 s, ... up to 60 s, and the request goes to another;
where none is left, it waits for the first to come back, until its deadline.

A reply is what the server wrote, whatever that is. A request that a healthy server refuses, or that
nobody answered in time, raises Unanswered.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_gen.errors import Unanswered, UsageError, did_you_mean
from rewards.chat_server import ChatServer, NoReply, Refused, base_url, check_server

ATTEMPTS = 4  # requests to one server before another is tried
FIRST_REST_S, LONGEST_REST_S = 5.0, 60.0
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """One address and the model asked for there. Raises UsageError for what cannot work."""

    url: str  # http://host:port/v1
    model: str
    weight: float = 1.0  # share of the requests, beside other servers of the same model
    concurrency: int = 64  # requests at once
    api_key_env: str | None = None  # name of the variable that holds the key; never the key
    price_in: float = 0.0  # of a million prompt tokens
    price_out: float = 0.0  # of a million written tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", base_url(self.url, "server"))
        if not self.model or not isinstance(self.model, str):
            raise UsageError(f"server {self.url}: model is the name it is known by there")
        for name, low in (("weight", 0.0), ("price_in", -1.0), ("price_out", -1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= low:
                raise UsageError(f"server {self.url}: {name} cannot be {value!r}")
        if type(self.concurrency) is not int or self.concurrency < 1:
            raise UsageError(f"server {self.url}: concurrency is a whole number from 1 on")


def read_servers(given: Any) -> list[Server]:
    """Servers from one, several, or tables as TOML has them. Raises UsageError."""
    several = [given] if isinstance(given, Server | Mapping) else list(given)
    if not several:
        raise UsageError("no server: give at least one url and model")
    return [one if isinstance(one, Server) else _from_table(one) for one in several]


def _from_table(table: Mapping[str, Any]) -> Server:
    known = list(Server.__dataclass_fields__)
    for name in table:
        if name not in known:
            raise UsageError(f"a server has no setting {name!r}.{did_you_mean(name, known)}")
    lacking = [name for name in ("url", "model") if name not in table]
    if lacking:
        raise UsageError(f"a server needs {' and '.join(lacking)}: {dict(table)}")
    return Server(**table)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server wrote."""

    text: str
    finish_reason: str  # stop, length, tool_calls, ...
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """As the next message of a conversation."""
        found: dict[str, Any] = {"role": "assistant", "content": self.text}
        return found | ({"tool_calls": list(self.tool_calls)} if self.tool_calls else {})


@dataclass(slots=True)
class _Live:
    """A server in use, from one event loop."""

    server: Server
    chat: ChatServer
    in_flight: int = 0
    failures: int = 0  # in a row
    rests: int = 0  # that are not over; requests in flight together may fail together

    def free(self) -> bool:
        return self.in_flight < self.server.concurrency and not self.rests


@dataclass(slots=True)
class Servers:
    """Asks the servers. Make and use it within one event loop; ``close`` it."""

    servers: Sequence[Server]
    timeout_s: float = 600.0  # one reply, every wait and retry included
    counts: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0
    _live: list[_Live] = field(default_factory=list)
    _waiting: dict[str, deque[asyncio.Future[None]]] = field(  # for a place at a model
        default_factory=lambda: defaultdict(deque)
    )

    def __post_init__(self) -> None:
        for server in self.servers:
            chat = ChatServer(
                server.url, api_key_env=server.api_key_env, attempts=ATTEMPTS, counts=self.counts
            )
            self._live.append(_Live(server, chat))

    @property
    def models(self) -> list[str]:
        """Without repetition, in the order given."""
        return list(dict.fromkeys(server.model for server in self.servers))

    @property
    def concurrency(self) -> int:
        return sum(server.concurrency for server in self.servers)

    async def check(self) -> None:
        """Raise UsageError when one is unreachable, refuses the key or lacks the model."""
        for one in self.servers:
            await asyncio.to_thread(check_server, one.url, one.model, one.api_key_env, "server")

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a chat completion request, ``model`` included. Raises Unanswered."""
        until = time.monotonic() + self.timeout_s
        trail: list[str] = []
        self.counts["asked"] += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._ask(body, trail, until)
        except TimeoutError:
            last = f"; {trail[-1]}" if trail else ""
            raise Unanswered(f"no reply in {self.timeout_s:g} s (timeout_s){last}") from None

    async def close(self) -> None:
        await asyncio.gather(*(live.chat.close() for live in self._live))

    async def _ask(self, body: Mapping[str, Any], trail: list[str], until: float) -> Reply:
        while True:
            live = await self._place(str(body["model"]))
            try:
                raw = await live.chat.complete(body, trail, until)
                live.failures = 0
                return self._paid(live.server, raw)
            except Refused as error:
                raise Unanswered(f"{live.server.url} refuses the request: {error}") from None
            except NoReply as error:
                trail.append(f"{live.server.url}: {error}")
                self._rest(live)
            finally:
                live.in_flight -= 1
                self._wake(live.server.model, 1)

    async def _place(self, model: str) -> _Live:
        """The least loaded free server of the model; waits for one."""
        able = [live for live in self._live if live.server.model == model]
        if not able:
            raise UsageError(
                f"no server has the model {model!r}.{did_you_mean(model, self.models)}"
            )
        waited = False
        while not (free := [live for live in able if live.free()]):
            await self._turn(model, ahead=waited)
            waited = True
        chosen = min(free, key=lambda live: (live.in_flight + 1) / live.server.weight)
        chosen.in_flight += 1
        return chosen

    async def _turn(self, model: str, ahead: bool) -> None:
        """Wait until a place may be free; ``ahead`` of all others, or behind them."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting[model]
        queue.appendleft(turn) if ahead else queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._wake(model, 1)  # the place came in the same moment
            raise

    def _wake(self, model: str, n: int) -> None:
        """Have the first ``n`` that wait for the model look for a place."""
        queue = self._waiting[model]
        while queue and n:
            turn = queue.popleft()
            if not turn.done():  # not cancelled meanwhile
                turn.set_result(None)
                n -= 1

    def _rest(self, live: _Live) -> None:
        live.failures += 1
        self.counts["server_failures"] += 1
        seconds = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** (live.failures - 1))
        live.rests += 1
        asyncio.get_running_loop().call_later(seconds, self._rested, live)

    def _rested(self, live: _Live) -> None:
        live.rests -= 1
        self._wake(live.server.model, live.server.concurrency)

    def _paid(self, server: Server, raw: str) -> Reply:
        reply = read_reply(raw, server.model)
        self.counts["replies"] += 1
        self.counts["prompt_tokens"] += reply.prompt_tokens
        self.counts["completion_tokens"] += reply.completion_tokens
        self.cost += reply.prompt_tokens * server.price_in / 1e6
        self.cost += reply.completion_tokens * server.price_out / 1e6
        return reply


def read_reply(raw: str, model: str) -> Reply:
    """The first choice of a chat completion that ``message_of`` can read."""
    whole = json.loads(raw)
    choice, usage = whole["choices"][0], whole.get("usage") or {}
    message = choice["message"]
    return Reply(
        text=message.get("content") or "",
        finish_reason=str(choice.get("finish_reason") or ""),
        model=model,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        tool_calls=tuple(message.get("tool_calls") or ()),
    )


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, Mapping) else None
    return found if type(found) is int and found >= 0 else 0
