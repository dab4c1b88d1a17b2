"""What stands before vLLM's routes in a rollout server: a token, and what vLLM has no route for.

An ASGI middleware, named on vLLM's command line. vLLM's own ``--api-key`` leaves the routes that
replace weights open; here every path but ``/health`` needs the token, where there is one.

    GET  /posttrain/about            model, versions, host, and whether the weights are whole
    POST /posttrain/sees?path=P      whether this machine sees the file P
    PUT  /posttrain/files/ID/NAME    a file of a snapshot; answered with its path here and SHA-256
    POST /posttrain/restart          end the process; ``posttrain rollout-server`` starts it again

A snapshot is sent only where its path means nothing (``delivery``). The newest two are kept in a
folder that the server's supervisor made and removes.

An update that was started and not finished leaves a model that ends its process at the next token,
and looks healthy: ``about`` says so, because it saw the requests pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from posttrain.engines.server import SPOOL, TOKEN, architecture, version_of_vllm

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_PREFIX = "/posttrain/"
_FILE = re.compile(r"files/([0-9a-f]{16,64})/([\w.-]{1,200})")
_KEPT = 2  # snapshots: the one in use, and the one that arrives
_EXIT_AFTER_S = 0.2  # time for the answer to leave


class Gate:
    """One for each server process."""

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self._token = os.environ.get(TOKEN, "")
        self._spool = os.environ.get(SPOOL, "")
        self._whole = True  # no update was started and not finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] not in ("http", "websocket") or path == "/health":
            await self._app(scope, receive, send)
        elif not self._knows(scope):
            await _answer(send, 401, {"error": {"message": "the token is missing or wrong"}})
        elif path.startswith(_PREFIX):
            await self._own(scope, path.removeprefix(_PREFIX), receive, send)
        else:
            await self._app(scope, receive, self._noting(path, send))

    def _knows(self, scope: Scope) -> bool:
        if not self._token:
            return True  # the server listens on loopback: see ``rollout_server``
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())

    def _noting(self, path: str, send: Send) -> Send:
        """``send`` that remembers whether an update is open."""
        if path == "/start_weight_update":
            self._whole = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            if path == "/finish_weight_update" and message.get("status") == 200:
                self._whole = True
            await send(message)

        return sending

    async def _own(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        match scope.get("method"), path:
            case "GET", "about":
                await _answer(send, 200, self._about(scope["app"].state.vllm_config))
            case "POST", "sees":
                asked = parse_qs(scope["query_string"].decode())["path"][0]
                await _answer(send, 200, {"sees": os.access(asked, os.R_OK)})
            case "POST", "restart":
                await _answer(send, 200, {})
                asyncio.get_running_loop().call_later(_EXIT_AFTER_S, os._exit, 0)
            case "PUT", _ if self._spool and (named := _FILE.fullmatch(path)):
                await _answer(send, 200, await self._take(named[1], named[2], receive))
            case _:
                await _answer(send, 404, {"error": {"message": f"no route {path}"}})

    def _about(self, config: Any) -> dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "vllm": version_of_vllm(),
            "model": config.model_config.model,
            "architecture": architecture(config.model_config.hf_config),
            "window": config.model_config.max_model_len,
            "logprobs_mode": config.model_config.logprobs_mode,
            "transport": config.weight_transfer_config.backend,
            "lora_rank": config.lora_config.max_lora_rank if config.lora_config else 0,
            "whole": self._whole,
        }

    async def _take(self, snapshot: str, name: str, receive: Receive) -> dict[str, str]:
        """Write the request's body to a file; half a file keeps its temporary name."""
        folder = Path(self._spool, snapshot)
        if not folder.exists():
            self._forget_old()
            folder.mkdir()
        target, aside = folder / name, folder / (name + ".partial")
        digest, more = hashlib.sha256(), True
        with aside.open("wb") as file:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError(f"{name}: the sender left in the middle of it")
                part = message.get("body", b"")
                digest.update(part)
                file.write(part)
                more = message.get("more_body", False)
        os.replace(aside, target)
        return {"path": str(target), "sha256": digest.hexdigest()}

    def _forget_old(self) -> None:
        found = sorted(Path(self._spool).iterdir(), key=lambda path: path.stat().st_mtime)
        for old in found[: max(0, len(found) - _KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
