"""What the rewards behind a server share: connections, what is tried again, and the waits.

Tried again: 408, 429, 5xx, and a lost or refused connection. Before attempt n + 1 one waits a
random time between 0 and min(20 s, 0.5 s * 2^n), "full jitter", or what ``Retry-After`` asks for.
Other statuses are not: the same request would be refused again.

Requests go through aiohttp, at 0.1 ms of processor time each; httpx takes 0.8 with a client for
each connection, 10 with a pool of 64. Only connecting has a deadline here; the caller's holds for
the rest.
"""

from __future__ import annotations

import email.utils
import json
import os
import secrets
import time
import urllib.request
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    import aiohttp

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
MAX_BODY_BYTES = 4_000_000  # larger than any reply
AGAIN = frozenset({408, 429, *range(500, 600)})
_random = secrets.SystemRandom()  # the seeded generators are the user's


class Lost(Exception):
    """No whole answer came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]  # whatever the case of a name
    text: str


class Connections:
    """Connections to the server at ``url``, for one event loop, as many as there are requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        """The answer to ``body`` as JSON, whatever its status. Raises Lost."""
        import aiohttp

        content = json.dumps(body).encode()  # escapes all but ASCII, surrogates included
        headers = {"Content-Type": "application/json", **headers}
        session = self._session or self._open()
        try:
            async with session.post(
                self.url + path, data=content, headers=headers, allow_redirects=False
            ) as answer:
                return Answer(answer.status, answer.headers, await _read(answer.content))
        except aiohttp.ClientError as error:
            raise Lost(f"no answer from {self.url}{path}: {error!r}") from None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        tls = certificates(self.url) or True  # True: aiohttp's own, which plain http does not use
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(self.url),
        )
        weakref.finalize(self, _let_go, connector)
        return self._session


def _let_go(connector: aiohttp.BaseConnector) -> None:
    """Close what was not closed in its event loop, which may be over, and which would complain."""
    connector._close()


async def _read(content: aiohttp.StreamReader) -> str:
    chunks, size = [], 0
    async for chunk in content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise Lost(f"an answer of more than {MAX_BODY_BYTES} bytes")
    return b"".join(chunks).decode("utf-8", "replace")


def _proxy(url: str) -> str | None:
    """The environment's proxy for this address."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    if is_local(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


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
