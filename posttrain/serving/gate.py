"""Decides what a public server lets through: four routes, a bearer key, a bounded body.

ASGI middleware around either engine. Around vLLM it is outermost (``--middleware``), because vLLM's
own key leaves some routes that compute open (``/invocations``, ``/tokenize``), and has routes
that a user of the model has no business with.

The key comes from the environment, not the command line, which every user of the machine can read.
Imports nothing of ours and nothing heavy: vLLM loads it in its own process.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY_VARIABLE = "POSTTRAIN_API_KEY"
ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/health": "GET",
}
MAX_BODY = 4 * 2**20  # bytes; a prompt of a million tokens still fits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """Refuses, in OpenAI's shape, what is not for users; hands on the rest."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(KEY_VARIABLE, "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # websockets: no route of ours
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        headers = dict(scope["headers"])
        if path not in ROUTES:
            await refuse(send, 404, f"there is no route {path}; there are: {', '.join(ROUTES)}")
        elif method != ROUTES[path]:
            await refuse(send, 405, f"{path} takes {ROUTES[path]}, not {method}")
        elif path.startswith("/v1/") and not self._may_enter(headers.get(b"authorization", b"")):
            await refuse(send, 401, "a valid key is needed: Authorization: Bearer KEY")
        elif (body := await _body(receive, headers)) is None:
            await refuse(send, 413, f"the request's body is longer than {MAX_BODY} bytes")
        else:
            await self._app(scope, _again(body, receive), send)

    def _may_enter(self, header: bytes) -> bool:
        if not self._key:
            return True
        scheme, _, given = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key)


async def _body(receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
    """The whole body; None as soon as it is known to be too long, whatever the header says."""
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > MAX_BODY:
        return None
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application: the body that was read, then whatever comes."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


_KINDS = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it; ``param`` names the field at fault."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


async def refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
