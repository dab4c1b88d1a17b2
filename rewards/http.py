"""What the rewards behind a server share: connections, what is tried again, and the waits.

Tried again: 408, 429, 5xx, and a lost or refused connection. Before attempt n + 1 one waits a
random time between 0 and min(20 s, 0.5 s * 2^n), "full jitter", or what ``Retry-After`` asks for.
Other statuses are not: the same request would be refused again.

A connection is an httpx client of its own in a list of idle ones; a pool looks through all its
connections at each request. Only connecting has a deadline here; the caller's holds for the rest.
"""

from __future__ import annotations

import email.utils
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
AGAIN = frozenset({408, 429, *range(500, 600)})
_random = secrets.SystemRandom()  # the seeded generators are the user's


class Connections:
    """Connections to the server at ``url``, for one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._idle: list[httpx.AsyncClient] = []
        self._tls: ssl.SSLContext | bool | None = None  # read at the first connection

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """A connection for one request at a time; kept for the next unless something raised."""
        http = self._idle.pop() if self._idle else self._connect()
        try:
            yield http
        except BaseException:  # whatever it was, the connection's state is unknown
            await http.aclose()
            raise
        self._idle.append(http)

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for http in idle:
            await http.aclose()

    def _connect(self) -> httpx.AsyncClient:
        import httpx

        if self._tls is None:
            self._tls = certificates(self.url)
        return httpx.AsyncClient(
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            verify=self._tls,
            trust_env=not is_local(self.url),
        )


def certificates(url: str) -> ssl.SSLContext | bool:
    """The store to check an https server by, SSL_CERT_FILE heeded; reading it takes a while."""
    import httpx

    return httpx.create_ssl_context() if url.startswith("https:") else False


def is_local(url: str) -> bool:
    """Whether a proxy of the environment is not for this address."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def jitter(attempt: int) -> float:
    """Seconds to wait before another attempt; the first is 0."""
    return _random.uniform(0.0, min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 30)))


def retry_after_s(header: str | None) -> float:
    """Seconds that a ``Retry-After`` asks for, as a number or a date; 0 for none or nonsense."""
    if not header:
        return 0.0
    try:
        return min(max(0.0, float(header)), 86_400.0)
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def api_key(variable: str | None) -> str:
    """The key in the environment variable, read anew each time; empty without one."""
    return os.environ.get(variable, "").strip() if variable else ""


def authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def without(key: str, text: str) -> str:
    """``text`` without the API key, which some servers quote in their errors."""
    return text.replace(key, "***") if key else text


def reason_of(raw: str) -> str:
    """The message of an error in OpenAI's form, else the text; cut."""
    try:
        found: Any = json.loads(raw)["error"]["message"]
        return str(found)[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return raw[:500]
