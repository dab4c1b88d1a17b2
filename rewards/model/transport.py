"""Decides how one request reaches a scoring server, and which failures are tried again.

Tried again: 408, 429, 5xx, and a lost or refused connection, after a random wait between 0 and
min(20 s, 0.5 s * 2^attempt), or what ``Retry-After`` asks for if that is longer. Other statuses are
not: the same request would be refused again. All of it, the wait for one of the ``concurrency``
places included, ends at ``timeout_s``. Nothing is ever a score of 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from rewards.errors import UsageError
from rewards.model.failures import Unjudged
from rewards.score import Outcome

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    import httpx

CONNECT_TIMEOUT_S = 5.0
CHECK_TIMEOUT_S = 60.0  # one answer while loading; a first pass may compile
KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
_AGAIN = frozenset({408, 429, *range(500, 600)})
_random = random.Random()  # the seeded generators are the user's


class _Loop:
    """What belongs to one event loop: the places, and connections that nobody uses just now.

    A connection is an httpx client of its own; a pool looks through all its connections at each
    request.
    """

    def __init__(self, concurrency: int) -> None:
        self.places = asyncio.Semaphore(concurrency)
        self.idle: list[httpx.AsyncClient] = []


class Transport:
    """POSTs JSON to one server, from any event loop."""

    def __init__(
        self, url: str, *, api_key_env: str, timeout_s: float, attempts: int, concurrency: int
    ) -> None:
        self.url, self._timeout_s = url, timeout_s
        self._attempts, self._concurrency = attempts, concurrency
        self._api_key_env = api_key_env
        self._tls: ssl.SSLContext | None = None
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The decoded answer. Raises Unjudged, saying what was tried."""
        trail: list[str] = []
        try:
            async with asyncio.timeout(self._timeout_s), self._here().places:
                return await self._attempted(path, body, trail)
        except TimeoutError:
            tried = "; ".join(trail[-3:]) or "no attempt has ended"
            raise Unjudged(
                f"no score from {self.url}{path} in {self._timeout_s:g} s (timeout_s): {tried}",
                Outcome.TIMEOUT,
            ) from None

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and decoded answer (None: not JSON) of one request while loading, tried once.

        Raises UsageError when the server cannot be reached.
        """
        import httpx

        try:
            with httpx.Client(**self._connection()) as http:
                headers = self._headers()
                timeout = httpx.Timeout(CHECK_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
                answer = http.request(
                    method, f"{self.url}{path}", json=body, headers=headers, timeout=timeout
                )
        except httpx.HTTPError as error:
            raise UsageError(
                f"reward model: {method} {self.url}{path} was tried and nobody answered "
                f"({type(error).__name__}: {error}); start the server, mend the URL, or pass "
                "check=False to load without asking"
            ) from None
        try:
            return answer.status_code, json.loads(self._without_key(answer.text))
        except ValueError:
            return answer.status_code, None

    async def close(self) -> None:
        """Close the connections of this event loop."""
        idle, here = self._here().idle, self._here()
        here.idle = []
        for http in idle:
            await http.aclose()

    async def _attempted(self, path: str, body: Mapping[str, Any], trail: list[str]) -> Any:
        import httpx

        for attempt in range(self._attempts):
            wait = _random.uniform(0.0, min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt))
            try:
                async with self._client() as http:
                    url = f"{self.url}{path}"
                    answer = await http.post(url, json=body, headers=self._headers())
            except (httpx.TransportError, httpx.DecodingError) as error:
                trail.append(f"attempt {attempt + 1}: {error!r}")
            else:
                if answer.status_code == 200:
                    return _decoded(answer)
                trail.append(f"attempt {attempt + 1}: {self._refusal(answer)}")
                if answer.status_code not in _AGAIN:
                    raise Unjudged(f"{self.url}{path}: {trail[-1]}")
                wait = max(wait, _retry_after_s(answer.headers.get("retry-after")))
            if attempt + 1 < self._attempts:
                await asyncio.sleep(wait)
        raise Unjudged(
            f"no score from {self.url}{path} in {self._attempts} attempts (attempts); {trail[-1]}"
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        import httpx

        here = self._here()
        limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S)
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)  # timeout_s holds over all
        if here.idle:
            http = here.idle.pop()
        else:
            http = httpx.AsyncClient(limits=limits, timeout=timeout, **self._connection())
        try:
            yield http
        except BaseException:  # whatever it was, the connection's state is unknown
            await http.aclose()
            raise
        here.idle.append(http)

    def _connection(self) -> dict[str, Any]:
        """What every client is made with; a proxy of the environment is not for loopback."""
        import httpx

        if self.url.startswith("https:") and self._tls is None:
            self._tls = httpx.create_ssl_context()  # reads the certificate store: once
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        return {"verify": self._tls or False, "trust_env": not local}

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _Loop(self._concurrency)
        return found

    def _key(self) -> str:
        return os.environ.get(self._api_key_env, "") if self._api_key_env else ""

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key()}"} if self._key() else {}

    def _without_key(self, text: str) -> str:
        """Some servers quote the key in their errors."""
        return text.replace(self._key(), "***") if self._key() else text

    def _refusal(self, answer: httpx.Response) -> str:
        try:
            reason = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = answer.text
        return f"status {answer.status_code}: {self._without_key(reason)}"[:500]


def _decoded(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except ValueError as error:
        raise Unjudged(f"{answer.url} answered with no JSON: {answer.text[:200]!r}") from error


def _retry_after_s(header: str | None) -> float:
    """Seconds; the form with a date is not read."""
    try:
        return min(max(0.0, float(header or 0)), 86_400.0)
    except ValueError:
        return 0.0
