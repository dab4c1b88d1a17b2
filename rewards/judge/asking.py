"""Decides how a question becomes a verdict: cache, place, request, parse, ask again.

A question takes one of ``concurrency`` places and from then on has ``timeout_s`` for everything.
Each reply comes from the cache or the server; one that is no verdict is asked again, with the
reason in our words, up to ``asks`` replies in all. Then the question has failed: a judge that gives
no verdict says nothing about the answer. For the cache the reason is no part of the question, so
that a parser which words it otherwise finds the same replies.

Structured output is tried once: when a server refuses a request with a schema and takes the same
request without, no schema is sent to it again. What counts as a verdict is the same either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from rewards.chat_server import ChatServer, NoReply, Refused, message_of
from rewards.judge.budget import Budget
from rewards.judge.cache import MIN_SECRET_BYTES, Cache, key_of
from rewards.judge.failures import Failed
from rewards.judge.prompts import Question, asked_again, messages
from rewards.judge.settings import Settings
from rewards.judge.verdicts import NotAVerdict, Verdict, parse, schema
from rewards.score import Outcome

# questions and how many of them failed; replies, and how many were no verdict or from the cache or
# could not be put there; HTTP requests, those that were tried again included
COUNTS = (
    *("questions", "failures", "replies", "invalid_replies", "cached_replies", "not_cached"),
    "requests",
)
_UNSTRUCTURED = frozenset({400, 415, 422, 501})  # how servers say no to a response_format


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict and how many replies it took."""

    verdict: Verdict
    asks: int


@dataclass(slots=True)
class _Job:
    """One question under way."""

    question: Question
    until: float = math.inf  # monotonic; from when it has a place
    trail: list[str] = field(default_factory=list)  # what went wrong so far


class _Place:
    """What belongs to one event loop."""

    def __init__(self, url: str, settings: Settings, counts: Counter[str]) -> None:
        self.server = ChatServer(
            url, api_key_env=settings.api_key_env, attempts=settings.attempts, counts=counts
        )
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


class Asker:
    """Asks one model on one server. ``counts`` says what happened so far."""

    def __init__(self, url: str, model: str, settings: Settings) -> None:
        self.url, self.model, self.settings = url, model, settings
        self.budget = Budget(settings.budget_tokens)
        self.counts: Counter[str] = Counter()
        self._cache = Cache(settings.cache) if settings.cache is not None else None
        fresh = secrets.token_bytes(MIN_SECRET_BYTES)
        self._secret = self._cache.secret if self._cache is not None else fresh
        self._structured: bool | None = None if settings.structured else False
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}

    async def verdict(self, question: Question, timeout_s: float = math.inf) -> Answer:
        """The judge's verdict. Raises Failed when there is none in time.

        ``timeout_s`` is the caller's own limit for what the setting of that name is for.
        """
        place, settings = self._place(), self.settings
        seconds = min(timeout_s, settings.timeout_s)
        job = _Job(question)
        self.counts["questions"] += 1
        try:
            async with _deadline(settings.queue_s, "no place to be judged in {} s (queue_s)", job):
                await place.slots.acquire()
            try:
                job.until = time.monotonic() + seconds
                async with _deadline(seconds, "no verdict in {} s (timeout_s)", job):
                    return await self._ask(place, job)
            finally:
                place.slots.release()
        except Failed:
            self.counts["failures"] += 1
            raise

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        place = self._places.pop(asyncio.get_running_loop(), None)
        if place is not None:
            await place.server.close()

    async def _ask(self, place: _Place, job: _Job) -> Answer:
        question = job.question
        frame = question.frame(self._secret)
        talk = messages(question, frame, self.settings.reason_chars)
        form = schema(question.fields, frame.key, self.settings.reason_chars)
        body = {"model": self.model, **self.settings.request_with(question.sampling)}
        problem = ""
        for asked in range(1, self.settings.asks + 1):
            key = key_of(**body, messages=talk, schema=form, repeat=question.repeat, ask=asked)
            said = talk if asked == 1 else asked_again(talk, problem)
            raw = await self._reply(place, job, key, body | {"messages": said}, form)
            self.counts["replies"] += 1
            try:
                return Answer(parse(_content(raw), question.fields, frame.key), asked)
            except NotAVerdict as error:
                problem = str(error)
                self.counts["invalid_replies"] += 1
                job.trail.append(f"reply {asked} was no verdict: {problem}")
        raise Failed(Outcome.ERROR, f"no verdict in {self.settings.asks} replies (asks): {problem}")

    async def _reply(
        self, place: _Place, job: _Job, key: str, body: dict[str, Any], form: dict[str, Any]
    ) -> str:
        """The raw reply, from the cache or the server; the same question waits for the first."""
        if self._cache is None:
            return await self._fetch(place, job, body, form)
        lock = place.locks.setdefault(key, asyncio.Lock())
        async with lock:
            kept = await asyncio.to_thread(self._cache.get, key)
            if kept is not None and message_of(kept) is not None:
                self.counts["cached_replies"] += 1
                return kept
            raw = await self._fetch(place, job, body, form)
            try:
                await asyncio.to_thread(self._cache.put, key, raw, model=self.model)
            except OSError as error:  # a full disk costs the cache, not the verdict
                self.counts["not_cached"] += 1
                warnings.warn(f"judge: the cache takes no reply: {error}", stacklevel=2)
            return raw

    async def _fetch(
        self, place: _Place, job: _Job, body: dict[str, Any], form: dict[str, Any]
    ) -> str:
        """A reply from the server, with the schema or, where it is refused, without."""
        refused = ""
        if self._structured is not False:
            wanted = {"name": "verdict", "strict": True, "schema": form}
            format_ = {"type": "json_schema", "json_schema": wanted}
            try:
                raw = await self._paid(place, job, body | {"response_format": format_})
                self._structured = True
                return raw
            except Refused as error:
                if self._structured or error.status not in _UNSTRUCTURED:
                    raise Failed(Outcome.ERROR, f"the server refuses: {error}") from None
                refused = f"; with a schema: {error}"
        try:
            raw = await self._paid(place, job, body)
        except Refused as error:
            raise Failed(Outcome.ERROR, f"the server refuses: {error}{refused}") from None
        self._structured = False
        return raw

    async def _paid(self, place: _Place, job: _Job, body: dict[str, Any]) -> str:
        size = sum(len(message["content"]) for message in body["messages"])
        while not self.budget.admit():
            await asyncio.sleep(0.02)  # until a request under way says what it cost
        tokens = None
        try:
            raw = await place.server.complete(body, job.trail, job.until)
            tokens = _tokens(raw, size)
            return raw
        except NoReply as error:
            raise Failed(error.outcome, str(error)) from None
        finally:
            self.budget.settle(tokens)

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            for ended in [one for one in self._places if one.is_closed()]:
                del self._places[ended]
            self._places[loop] = _Place(self.url, self.settings, self.counts)
        return self._places[loop]


@contextlib.asynccontextmanager
async def _deadline(seconds: float, what: str, job: _Job) -> AsyncIterator[None]:
    """A time-out by name: Failed, with the last thing that went wrong before it."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        last = f"; {job.trail[-1]}" if job.trail else ""
        raise Failed(Outcome.TIMEOUT, what.format(f"{seconds:g}") + last) from None


def _content(raw: str) -> str:
    """What the judge wrote. Raises NotAVerdict when that is nothing whole."""
    choice = message_of(raw) or {}
    message = choice.get("message", {})
    if choice.get("finish_reason") == "length":
        raise NotAVerdict("the reply is cut off (max_tokens)")
    if message.get("refusal"):
        raise NotAVerdict("the judge declined to answer")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise NotAVerdict("the reply is empty")
    return content


def _tokens(raw: str, prompt_chars: int) -> int:
    """What the reply cost, by the server's count; where it has none, 4 characters a token."""
    usage = json.loads(raw).get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if type(total) is int and total >= 0:
        return total
    return (prompt_chars + len(raw)) // 4
