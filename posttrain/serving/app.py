"""The routes of the embedded engine's server, as a Starlette application behind the gate.

Decides how an answer travels: whole as JSON, or as server-sent events, one chunk a token, ended by
``data: [DONE]``. A client that goes away ends its computation, streaming or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain.serving.answers import Answer, Piece
from posttrain.serving.decoder import QueueFull
from posttrain.serving.gate import Gate, error_body
from posttrain.serving.protocol import ChatRequest, RequestError, TextRequest, read
from posttrain.serving.service import Service


def make_app(service: Service) -> Starlette:
    """The application; closing it ends the decoder."""

    async def health(request: Request) -> Response:
        return Response()

    async def models(request: Request) -> Response:
        card = {"id": service.name, "object": "model", "created": 0, "owned_by": "posttrain"}
        card |= {"max_model_len": service.window}
        return JSONResponse({"object": "list", "data": [card]})

    async def chat(request: Request) -> Response:
        return await _while_connected(request, _complete(service, ChatRequest, request))

    async def text(request: Request) -> Response:
        return await _while_connected(request, _complete(service, TextRequest, request))

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, f"generation failed: {error!r}"), 500)

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.decoder.close()

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
        ],
        middleware=[Middleware(Gate)],
        exception_handlers={Exception: failed},
        lifespan=life,
    )


async def _complete(service: Service, kind: type[Any], http: Request) -> Response:
    try:
        request = read(kind, _json(await http.body()))
        answer, asks = service.answer(request)
        pieces = service.pieces(request, answer, asks)
        if request.stream:
            first = await anext(pieces)  # a refusal still has a status of its own
            events = _events(answer, _behind(first, pieces), request, len(asks))
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(answer.whole(len(asks), [piece async for piece in pieces]))
    except RequestError as error:
        return JSONResponse(error_body(error.status, str(error), error.param), error.status)
    except QueueFull as error:
        return JSONResponse(error_body(503, str(error)), 503, headers={"retry-after": "1"})


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error


async def _behind(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


async def _events(
    answer: Answer, pieces: AsyncIterator[Piece], request: ChatRequest | TextRequest, n: int
) -> AsyncIterator[bytes]:
    try:
        if answer.chat:
            for choice in range(n):
                yield _event(answer.opening(choice))
        async for piece in pieces:
            if answer.says(piece):
                yield _event(answer.chunk(piece))
        if request.stream_options is not None and request.stream_options.include_usage:
            yield _event(answer.last_chunk())
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - boundary: the status has been sent already
        yield _event(error_body(500, f"generation failed: {error!r}"))
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


async def _while_connected(http: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The work's response; the work is cancelled when the client goes away before it has one."""
    await http.body()  # kept by the request; what comes after it is the end of the connection
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=499)  # nobody reads it
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        """Something of the body; it was read already."""
