"""What the examples beside this share: a policy that follows a script, and a scripted chat server.

``play`` drives one episode as a rollout does, message by message; ``call`` writes a message with a
tool call. ``chat_server`` answers OpenAI's chat route with what a function says, in a thread.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import envs
from envs.single_turn import settled


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": tool, "arguments": arguments}
    tool_call = {"id": "call00000", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [tool_call]}


def play(environment: envs.Environment, replies: Sequence[dict[str, Any] | str]) -> Any:
    """Play the first training task, print the conversation and the score; returns the score."""
    return asyncio.run(_play(environment, replies))


async def _play(environment: envs.Environment, replies: Sequence[dict[str, Any] | str]) -> Any:
    env = environment.make()
    try:
        _show(await settled(env.start(environment.tasks.train(0), seed=0)))
        for reply in replies:
            message = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
            _show([message])
            step = await settled(env.step(message))
            _show(step.messages)
            if step.done:
                print(f"score: {step.score}")
                return step.score
    finally:
        await settled(env.close())
    raise RuntimeError("the script ended before the episode did")


def _show(messages: Sequence[envs.Message]) -> None:
    for one in messages:
        calls = [f"-> {json.dumps(c['function'])}" for c in one.get("tool_calls", ())]
        print(f"{one['role']}:", *filter(None, [str(one["content"]).strip(), *calls]))


@contextmanager
def chat_server(says: Callable[[list[dict[str, Any]]], str]) -> Iterator[str]:
    """The address of a server that answers with ``says(messages)``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": says(body["messages"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            raw = json.dumps({"choices": [choice], "usage": {"total_tokens": 1}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
