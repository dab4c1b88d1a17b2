"""Asks one vLLM server over HTTP: token ids in, token ids with log-probs and versions out.

Decides what a request looks like on the wire and what an answer means. It uses vLLM's token route,
``/inference/v1/generate``: the completions route does not say which weights wrote a token, and
needs a tokenizer. Only the tokens named in the request end a completion.

Two kinds of failure are told apart. ``ServerFailed``: the server is gone, hangs or broke; the same
request may be sent again elsewhere. ``RunError``: the server is well and refuses the request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from posttrain.engines.server import bearer
from posttrain.errors import RunError
from posttrain.types import Completion, FinishReason, Floats, Ints, Request

_CONNECT_TIMEOUT_S = 5.0
_KEEPALIVE_S = 4.0  # vLLM closes a connection that was idle for 5 s
_NO_LOGPROB = -9999.0  # what vLLM writes where a log-prob is missing, -inf or NaN


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a request has to keep to."""

    window: int  # tokens, prompt and completion together
    vocab_size: int


class ServerFailed(Exception):
    """The server did not answer as a healthy one does. Never leaves the engine."""


class RequestTimedOut(ServerFailed):
    """No answer within the deadline; whether the server is alive is another question."""


class VllmClient:
    """Connections to one server. ``close`` it in the event loop that used it.

    Each connection is an httpx client of its own, in a list of idle ones. One client with a pool of
    64 connections looks at all of them at each request: 10 ms of CPU per request, against 0.6 here.
    """

    def __init__(self, url: str, limits: ModelLimits, *, elsewhere: bool = False) -> None:
        self.url = url
        self.adapter = ""  # asked for by name in each request, once one was loaded
        # Whether a path of ours means the same there; None: not asked yet (``delivery``).
        self.sees_files = None if elsewhere else True
        self._limits = limits
        self._idle: list[httpx.AsyncClient] = []
        self._open: set[asyncio.Timeout] = set()  # deadlines of what was asked and not answered

    async def generate(self, request: Request, *, salt: str, timeout_s: float) -> Completion:
        """One completion. ``salt`` keeps the KV cache of other weights from being used."""
        name = f"request {request.request_id}"
        room = self._room(request.prompt_ids, name)
        sampling = request.sampling
        body = {
            "request_id": request.request_id,
            "token_ids": request.prompt_ids.tolist(),
            "cache_salt": salt,
            "sampling_params": {
                "max_tokens": min(sampling.max_tokens, room),
                "temperature": sampling.temperature,
                "seed": request.seed,
                "stop_token_ids": list(sampling.stop_token_ids),
                "ignore_eos": True,  # stop_token_ids says it all
                "logprobs": 0,
            },
        }
        return _completion(await self._ask(body, timeout_s, name), name)

    async def logprobs(
        self, token_ids: Ints, *, temperature: float, salt: str, timeout_s: float
    ) -> Floats:
        """Log-probs of ``token_ids[1:]``, [T-1], at the temperature.

        vLLM leaves prompt log-probs at temperature 1 in every mode. At another temperature each
        token is therefore asked for by a request of its own, behind the prompt before it.
        """
        self._room(token_ids, "log-probs of a sequence")
        if temperature == 1.0:
            return await self._prompt_logprobs(token_ids, salt, timeout_s)
        if temperature <= 0:
            raise ValueError(f"log-probs need a temperature above 0, got {temperature}")
        asked = [
            self._next_logprob(token_ids[:end], int(token_ids[end]), temperature, salt, timeout_s)
            for end in range(1, len(token_ids))
        ]
        return np.array(await asyncio.gather(*asked), dtype=np.float32)

    async def next_token(self, timeout_s: float) -> None:
        """Have the engine write one token: a sign of life that ``/health`` does not give."""
        body = {"token_ids": [0], "sampling_params": {"max_tokens": 1, "temperature": 0.0}}
        await self._ask(body, timeout_s, "sign of life")

    async def post(
        self, path: str, body: Mapping[str, Any] | None, *, timeout_s: float, name: str
    ) -> Any:
        """POST and decode; ``name`` says in an error what was being done."""
        return json.loads(await self.command(path, body, timeout_s=timeout_s, name=name))

    async def command(
        self, path: str, body: Mapping[str, Any] | None, *, timeout_s: float, name: str
    ) -> bytes:
        """As ``post``, for a route whose answer is not JSON, or is of no interest."""
        return await self._checked("POST", path, {"json": body}, timeout_s, name)

    async def put(
        self, path: str, content: AsyncIterator[bytes], *, timeout_s: float, name: str
    ) -> Any:
        """PUT what the iterator yields, and decode the answer."""
        return json.loads(await self._checked("PUT", path, {"content": content}, timeout_s, name))

    def abandon(self) -> None:
        """Wait for nothing that was asked: each question fails now, as at its deadline."""
        now = asyncio.get_running_loop().time()
        for deadline in self._open:
            if not deadline.expired():
                deadline.reschedule(now)

    async def _checked(
        self, method: str, path: str, body: Mapping[str, Any], timeout_s: float, name: str
    ) -> bytes:
        try:
            response = await self._send(method, path, body, timeout_s)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise RequestTimedOut(
                f"{name}: no answer from {self.url} in {timeout_s:g} s"
            ) from error
        except httpx.TransportError as error:
            raise ServerFailed(f"{name}: {self.url} did not answer: {error!r}") from error
        if response.status_code == 200:
            return response.content
        message = f"{name}: {self.url}{path} answered {response.status_code}: {_reason(response)}"
        if response.status_code >= 500:
            raise ServerFailed(message)
        raise RunError(message)

    async def healthy(self, timeout_s: float) -> bool:
        """Whether the server says within the deadline that it is well."""
        try:
            return (await self._send("GET", "/health", {}, timeout_s)).status_code == 200
        except (httpx.TransportError, TimeoutError):
            return False

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for http in idle:
            await http.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any], timeout_s: float
    ) -> httpx.Response:
        http = self._idle.pop() if self._idle else _connection(self.url)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                self._open.add(deadline)
                response = await http.request(method, path, **body)
        except BaseException:  # whatever it was, the connection's state is unknown
            await http.aclose()
            raise
        finally:
            self._open.discard(deadline)
        self._idle.append(http)
        return response

    async def _ask(self, body: dict[str, Any], timeout_s: float, name: str) -> Any:
        if self.adapter:
            body["model"] = self.adapter
        return await self.post("/inference/v1/generate", body, timeout_s=timeout_s, name=name)

    def _room(self, prompt: Ints, name: str) -> int:
        """Tokens left in the window. Refuses here what would not be refused, but end the server."""
        if len(prompt) == 0:
            raise RunError(f"{name}: the prompt is empty")
        if prompt.min() < 0 or prompt.max() >= self._limits.vocab_size:
            odd = int(prompt.min()) if prompt.min() < 0 else int(prompt.max())
            raise RunError(
                f"{name}: token id {odd} is outside the model's vocabulary of "
                f"{self._limits.vocab_size}; is the tokenizer this model's?"
            )
        room = self._limits.window - len(prompt)
        if room < 1:
            raise RunError(
                f"{name}: a prompt of {len(prompt)} tokens leaves no room in the engine's window "
                f"of {self._limits.window} (rollout.max_model_len)"
            )
        return room

    async def _prompt_logprobs(self, token_ids: Ints, salt: str, timeout_s: float) -> Floats:
        body = {
            "token_ids": token_ids.tolist(),
            "cache_salt": salt,
            "sampling_params": {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0},
        }
        answer = await self._ask(body, timeout_s, "log-probs of a sequence")
        per_token = answer["prompt_logprobs"][1:]  # nothing comes before the first token
        pairs = zip(per_token, token_ids[1:].tolist(), strict=True)
        return np.array([entry[str(token)]["logprob"] for entry, token in pairs], dtype=np.float32)

    async def _next_logprob(
        self, prompt: Ints, token: int, temperature: float, salt: str, timeout_s: float
    ) -> float:
        body = {
            "token_ids": prompt.tolist(),
            "cache_salt": salt,
            "sampling_params": {
                "max_tokens": 1,
                "temperature": temperature,
                "seed": 0,
                "ignore_eos": True,
                # Two entries come back: the token that was sampled, then the first one named.
                # vLLM wants as many named as entries, so a second, unused, is named.
                "logprobs": 2,
                "logprob_token_ids": [token, 0 if token else 1],
            },
        }
        answer = await self._ask(body, timeout_s, "log-prob of a token")
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return next(float(e["logprob"]) for e in entries if e["token_id"] == token)


def _connection(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEPALIVE_S),
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),  # the caller's deadline holds
        verify=url.startswith("https:"),  # or a certificate store is read for nothing
        trust_env=False,
        headers=bearer(),
    )


def _completion(answer: Mapping[str, Any], name: str) -> Completion:
    choice = answer["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ServerFailed(f"{name}: the engine ended it with {choice['finish_reason']!r}")
    token_ids = np.array(choice["token_ids"], dtype=np.int64)
    content = choice["logprobs"]["content"] or ()
    logprobs = np.array([entry["logprob"] for entry in content], dtype=np.float32)
    if logprobs.size and logprobs.min() <= _NO_LOGPROB:
        raise RunError(f"{name}: the engine gave no finite log-prob for a token it sampled")
    versions = np.zeros(len(token_ids), dtype=np.int64)
    for span in choice["weight_versions"] or ():
        versions[span["start"] : span["end"]] = _version_number(span["version"])
    return Completion(token_ids, logprobs, versions, FinishReason(choice["finish_reason"]))


def _version_number(version: str) -> int:
    """vLLM calls the weights that it started with "default"; nothing published is numbered so."""
    return 0 if version == "default" else int(version)


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
