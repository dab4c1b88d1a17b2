"""Decides how one request reaches a scoring server.

What is tried again is said in ``rewards.http``. All of it, the wait for one of the ``concurrency``
places included, ends at ``timeout_s``. Nothing is ever a score of 0.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from rewards.errors import UsageError
from rewards.http import (
    AGAIN,
    CONNECT_TIMEOUT_S,
    Answer,
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
from rewards.model.failures import Unjudged
from rewards.score import Outcome

CHECK_TIMEOUT_S = 60.0  # one answer while loading; a first pass may compile


class _Loop:
    """What belongs to one event loop."""

    def __init__(self, url: str, concurrency: int) -> None:
        self.places = asyncio.Semaphore(concurrency)
        self.connections = Connections(url)


class Transport:
    """POSTs JSON to one server, from any event loop."""

    def __init__(
        self, url: str, *, api_key_env: str, timeout_s: float, attempts: int, concurrency: int
    ) -> None:
        self.url, self._timeout_s = url, timeout_s
        self._attempts, self._concurrency = attempts, concurrency
        self._api_key_env = api_key_env
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
            verify, trust_env = certificates(self.url), not is_local(self.url)
            with httpx.Client(verify=verify, trust_env=trust_env) as http:
                headers = self._headers
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
            return answer.status_code, json.loads(without(api_key(self._api_key_env), answer.text))
        except ValueError:
            return answer.status_code, None

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self._here().connections.close()

    async def _attempted(self, path: str, body: Mapping[str, Any], trail: list[str]) -> Any:
        for attempt in range(self._attempts):
            wait = jitter(attempt)
            try:
                answer = await self._here().connections.post(path, body, self._headers)
            except Lost as error:
                trail.append(f"attempt {attempt + 1}: {error}")
            else:
                if answer.status == 200:
                    return self._decoded(path, answer)
                trail.append(f"attempt {attempt + 1}: {self._refusal(answer)}")
                if answer.status not in AGAIN:
                    raise Unjudged(f"{self.url}{path}: {trail[-1]}")
                wait = max(wait, retry_after_s(answer.headers.get("retry-after")))
            if attempt + 1 < self._attempts:
                await asyncio.sleep(wait)
        raise Unjudged(
            f"no score from {self.url}{path} in {self._attempts} attempts (attempts); {trail[-1]}"
        )

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = _Loop(self.url, self._concurrency)
        return found

    @property
    def _headers(self) -> dict[str, str]:
        return authorization(api_key(self._api_key_env))

    def _refusal(self, answer: Answer) -> str:
        reason = without(api_key(self._api_key_env), reason_of(answer.text))
        return f"status {answer.status}: {reason}"

    def _decoded(self, path: str, answer: Answer) -> Any:
        try:
            return json.loads(answer.text)
        except ValueError as error:
            said = f"{answer.text[:200]!r}"
            raise Unjudged(f"{self.url}{path} answered with no JSON: {said}") from error
