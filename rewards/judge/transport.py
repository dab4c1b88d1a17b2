"""Decides how one request reaches the judge's server, and which failures are tried again.

Tried again: 408, 429, 5xx, a lost or refused connection, and a 200 that is no chat completion (what
proxies send). Before attempt n + 1 it waits a random time between 0 and min(20 s, 0.5 s * 2^n),
"full jitter", after what ``Retry-After`` asks for, which holds for all requests of this judge. Not
tried again: other statuses, because the same request would be refused again.

Each connection is an httpx client of its own in a list of idle ones: a pool looks through all its
connections at each request. Nothing here has a deadline but connecting; the caller's holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.errors import UsageError, did_you_mean
from rewards.judge.failures import Failed
from rewards.judge.settings import Settings, api_key
from rewards.score import Outcome

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
MAX_BODY_BYTES = 4_000_000
_AGAIN = frozenset({408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_random = secrets.SystemRandom()  # the seeded generators are the user's


class Refused(Exception):
    """The server is well and does not take this request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


class Transport:
    """Connections to one server from one event loop."""

    def __init__(self, url: str, settings: Settings, counts: Counter[str]) -> None:
        self.url, self._counts = url, counts
        self._api_key_env, self._attempts = settings.api_key_env, settings.attempts
        self._idle: list[httpx.AsyncClient] = []
        self._not_before = 0.0  # monotonic; a server asked for quiet until then
        self._tls: ssl.SSLContext | bool | None = None  # read at the first connection

    async def complete(self, body: Mapping[str, Any], trail: list[str], until: float) -> str:
        """The raw chat completion to ``body``; ``trail`` learns what went wrong on the way.

        ``until`` is the caller's deadline (monotonic): no wait is begun that would pass it. Raises
        Refused, and Failed when all attempts failed.
        """
        for attempt in range(self._attempts):
            await self._quiet(until)
            status, headers, raw, problem = await self._once(body)
            if status == 200:
                return raw
            trail.append(f"attempt {attempt + 1}: {problem}")
            if status is not None and status not in _AGAIN:
                raise Refused(status, problem)
            if attempt + 1 < self._attempts:
                self._respect(headers.get("retry-after"))
                await asyncio.sleep(jitter(attempt))
        last = trail[-1]
        raise Failed(Outcome.ERROR, f"no reply in {self._attempts} attempts (attempts); {last}")

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for http in idle:
            await http.aclose()

    async def _once(
        self, body: Mapping[str, Any]
    ) -> tuple[int | None, Mapping[str, str], str, str]:
        """Status (None: no usable answer), headers, text, and what is wrong with it."""
        import httpx

        key = api_key(self._api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._counts["requests"] += 1
        content = json.dumps(body).encode()  # escapes all but ASCII, surrogates included
        try:
            async with self._connection() as http:
                path = f"{self.url}/chat/completions"
                headers["Content-Type"] = "application/json"
                async with http.stream("POST", path, content=content, headers=headers) as answer:
                    raw = await _read(answer)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return None, {}, "", without(key, f"no answer from {self.url}: {error!r}")
        if raw is None:
            return None, {}, "", f"an answer of more than {MAX_BODY_BYTES} bytes"
        if answer.status_code == 200:
            usable = message_of(raw) is not None
            return (200 if usable else None), {}, raw, "a 200 that is no chat completion"
        reason = without(key, f"status {answer.status_code}: {_reason(raw)}")
        return answer.status_code, answer.headers, raw, reason

    async def _quiet(self, until: float) -> None:
        wait = self._not_before - time.monotonic()
        if self._not_before > until:
            why = f"the server asks to be left alone for {wait:.0f} s more, beyond the deadline"
            raise Failed(Outcome.TIMEOUT, f"{why} (timeout_s)")
        if wait > 0:  # and a little more, or all that wait would come back in the same moment
            await asyncio.sleep(wait + jitter(0))

    def _respect(self, retry_after: str | None) -> None:
        seconds = retry_after_s(retry_after)
        if seconds:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        http = self._idle.pop() if self._idle else self._connect()
        try:
            yield http
        except BaseException:  # whatever it was, the connection's state is unknown
            await http.aclose()
            raise
        self._idle.append(http)

    def _connect(self) -> httpx.AsyncClient:
        import httpx

        if self._tls is None:
            self._tls = _certificates(self.url)
        return httpx.AsyncClient(
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            verify=self._tls,
            trust_env=not is_local(self.url),  # a proxy of the environment is not for loopback
        )


def base_url(url: str) -> str:
    """``http://host:port/v1`` from what people paste. Raises UsageError for what is no address."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError):
        raise UsageError("judge: no address was given; write http://host:port/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "judge: the address must hold neither a password nor a query; put the key into an "
            "environment variable and name it with api_key_env"
        )
    if not usable:
        raise UsageError(f"judge: {url!r:.200} is no address; write http://host:port/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def check_server(url: str, model: str, api_key_env: str | None) -> None:
    """Raise UsageError when nobody answers at ``url``, the key is refused or the model unknown."""
    import httpx

    key = api_key(api_key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(
            f"{url}/models",
            headers=headers,
            timeout=CONNECT_TIMEOUT_S,
            trust_env=not is_local(url),
            verify=_certificates(url),
        )
    except httpx.HTTPError as error:
        why = without(key, str(error)) or type(error).__name__
        raise UsageError(
            f"judge unreachable: {url}/models did not answer in {CONNECT_TIMEOUT_S:g} s ({why}). "
            "Start the server or mend the address; check=False leaves this check out, e.g. to read "
            "a cache alone"
        ) from None
    if answer.status_code in (401, 403):
        hint = f"the key in {api_key_env}" if api_key_env else "no key (api_key_env)"
        raise UsageError(f"judge: {url} answered {answer.status_code} to {hint}")
    try:
        listed = [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return  # a server without this route
    if listed and model not in listed:
        raise UsageError(
            f"judge: {url} does not serve {model!r}.{did_you_mean(model, listed)} "
            "check=False leaves this check out"
        )


def message_of(raw: str) -> Mapping[str, Any] | None:
    """The first choice of a chat completion, or None where ``raw`` is something else."""
    try:
        choice = json.loads(raw)["choices"][0]
        return choice if isinstance(choice["message"], dict) else None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None


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


def _certificates(url: str) -> ssl.SSLContext | bool:
    """The store to check an https server by, SSL_CERT_FILE heeded; reading it takes a while."""
    import httpx

    return httpx.create_ssl_context() if url.startswith("https:") else False


def is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def without(key: str, text: str) -> str:
    """``text`` without the API key, which some servers quote in their errors."""
    return text.replace(key, "***") if key else text


def jitter(attempt: int) -> float:
    """Seconds to wait before another attempt."""
    return _random.uniform(0.0, min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 30)))


async def _read(answer: httpx.Response) -> str | None:
    """The body as text, or None when it is larger than any reply."""
    chunks, size = [], 0
    async for chunk in answer.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
    return b"".join(chunks).decode("utf-8", "replace")


def _reason(raw: str) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return raw[:500]
