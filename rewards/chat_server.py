"""Decides how one request reaches an OpenAI-compatible chat server.

Beside what ``rewards.http`` tries again, a 200 that is no chat completion is (what proxies send). A
``Retry-After`` holds for all requests of one ``ChatServer``. Nothing here has a deadline but
connecting; the caller's holds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from rewards.errors import UsageError, did_you_mean
from rewards.http import (
    AGAIN,
    CONNECT_TIMEOUT_S,
    Connections,
    Lost,
    api_key,
    authorization,
    certificates,
    is_local,
    jitter,
    reason_of,
    retry_after_s,
    without,
)
from rewards.score import Outcome


class Refused(Exception):
    """The server is well and does not take this request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


class NoReply(Exception):
    """No attempt brought a reply: ``outcome`` is ERROR, or TIMEOUT where waiting had no sense."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class ChatServer:
    """Connections to one server from one event loop; ``counts["requests"]`` counts attempts."""

    def __init__(
        self, url: str, *, api_key_env: str | None, attempts: int, counts: Counter[str]
    ) -> None:
        self.url, self._counts = url, counts
        self._api_key_env, self._attempts = api_key_env, attempts
        self._connections = Connections(url)
        self._not_before = 0.0  # monotonic; a server asked for quiet until then

    async def complete(self, body: Mapping[str, Any], trail: list[str], until: float) -> str:
        """The raw chat completion to ``body``; ``trail`` learns what went wrong on the way.

        ``until`` is the caller's deadline (monotonic): no wait is begun that would pass it. Raises
        Refused, and NoReply when all attempts failed.
        """
        for attempt in range(self._attempts):
            await self._quiet(until)
            status, headers, raw, problem = await self._once(body)
            if status == 200:
                return raw
            trail.append(f"attempt {attempt + 1}: {problem}")
            if status is not None and status not in AGAIN:
                raise Refused(status, problem)
            if attempt + 1 < self._attempts:
                self._respect(headers.get("retry-after"))
                await asyncio.sleep(jitter(attempt))
        last = trail[-1]
        raise NoReply(Outcome.ERROR, f"no reply in {self._attempts} attempts (attempts); {last}")

    async def close(self) -> None:
        await self._connections.close()

    async def _once(
        self, body: Mapping[str, Any]
    ) -> tuple[int | None, Mapping[str, str], str, str]:
        """Status (None: no usable answer), headers, text, and what is wrong with it."""
        key = api_key(self._api_key_env)
        self._counts["requests"] += 1
        try:
            answer = await self._connections.post("/chat/completions", body, authorization(key))
        except Lost as error:
            return None, {}, "", without(key, str(error))
        if answer.status == 200:
            usable = message_of(answer.text) is not None
            problem = "a 200 that is no chat completion"
            return (200 if usable else None), {}, answer.text, problem
        reason = without(key, f"status {answer.status}: {reason_of(answer.text)}")
        return answer.status, answer.headers, answer.text, reason

    async def _quiet(self, until: float) -> None:
        wait = self._not_before - time.monotonic()
        if self._not_before > until:
            why = f"the server asks to be left alone for {wait:.0f} s more, beyond the deadline"
            raise NoReply(Outcome.TIMEOUT, f"{why} (timeout_s)")
        if wait > 0:  # and a little more, or all that wait would come back in the same moment
            await asyncio.sleep(wait + jitter(0))

    def _respect(self, retry_after: str | None) -> None:
        seconds = retry_after_s(retry_after)
        if seconds:
            self._not_before = max(self._not_before, time.monotonic() + seconds)


def base_url(url: str, who: str) -> str:
    """``http://host:port/v1`` from what people paste; ``who`` asked for it.

    Raises UsageError for what is no address.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError):
        raise UsageError(f"{who}: no address was given; write http://host:port/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{who}: the address must hold neither a password nor a query; put the key into an "
            "environment variable and name it with api_key_env"
        )
    if not usable:
        raise UsageError(f"{who}: {url!r:.200} is no address; write http://host:port/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def check_server(url: str, model: str, api_key_env: str | None, who: str) -> None:
    """Raise UsageError when nobody answers at ``url``, the key is refused or the model unknown."""
    import httpx

    key = api_key(api_key_env)
    try:
        answer = httpx.get(
            f"{url}/models",
            headers=authorization(key),
            timeout=CONNECT_TIMEOUT_S,
            trust_env=not is_local(url),
            verify=certificates(url),
        )
    except httpx.HTTPError as error:
        why = without(key, str(error)) or type(error).__name__
        raise UsageError(
            f"{who} unreachable: {url}/models did not answer in {CONNECT_TIMEOUT_S:g} s ({why}). "
            "Start the server or mend the address; check=False leaves this check out, e.g. to use "
            "what is cached alone"
        ) from None
    if answer.status_code in (401, 403):
        hint = f"the key in {api_key_env}" if api_key_env else "no key (api_key_env)"
        raise UsageError(f"{who}: {url} answered {answer.status_code} to {hint}")
    try:
        listed = [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return  # a server without this route
    if listed and model not in listed:
        raise UsageError(
            f"{who}: {url} does not serve {model!r}.{did_you_mean(model, listed)} "
            "check=False leaves this check out"
        )


def message_of(raw: str) -> Mapping[str, Any] | None:
    """The first choice of a chat completion, or None where ``raw`` is something else."""
    try:
        choice = json.loads(raw)["choices"][0]
        return choice if isinstance(choice["message"], dict) else None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
