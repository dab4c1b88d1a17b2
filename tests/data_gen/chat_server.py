"""A fast chat server for tests: the real protocol on one event loop, answers by a function."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

MODEL = "scripted"
Behave = Callable[[dict[str, Any]], Any]  # body -> text, a whole message, or (status, text)


class ChatServer:
    """``behave(body)``; ``bodies`` has every request so far, ``delay_s`` is waited before each."""

    def __init__(
        self,
        behave: Behave,
        *,
        delay_s: float = 0.0,
        models: tuple[str, ...] = (MODEL,),
        finish: str = "stop",
    ):
        self.finish = finish
        self.behave, self.delay_s, self.models = behave, delay_s, models
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = 0
                for line in head.decode().split("\r\n"):
                    name, _, value = line.partition(":")
                    length = int(value) if name.lower() == "content-length" else length
                status, content = await self._answer(await reader.readexactly(length))
                size = len(content)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\n\r\n".encode())
                writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async def _answer(self, raw: bytes) -> tuple[int, bytes]:
        if not raw:
            return 200, json.dumps({"data": [{"id": model} for model in self.models]}).encode()
        body = json.loads(raw)
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            said = self.behave(body)
        finally:
            self.in_flight -= 1
        if isinstance(said, tuple):
            return said[0], json.dumps({"error": {"message": said[1]}}).encode()
        message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
        finish = "tool_calls" if message.get("tool_calls") else self.finish
        words = len(str(message.get("content") or "").split())
        return 200, json.dumps(
            {
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 10, "completion_tokens": words},
            }
        ).encode()
