"""A server that speaks vLLM's routes and does what a test tells it: for faults and their timing.

Real servers have their own tests; this one lets a test hold a completion back, break a phase of a
sync, or come up stale after each restart, in milliseconds.
"""

import asyncio
import json

from posttrain.errors import RunError


class FakeVllm:
    """Stands in for ``server.VllmServer``: same methods, an HTTP server inside this process."""

    def __init__(
        self, *, gaps=(0.0,), broken_phase="", fail_starts=0, token_s=0.0, elsewhere=False
    ):
        self.elsewhere = elsewhere
        self._address = ("127.0.0.1", 0)
        self.ended = 0  # times that it was told that its weights can't be trusted
        self.url = ""
        self.starts = 0
        self.seen = []  # paths asked for, in order
        self.release = asyncio.Event()  # completions wait for it
        self.release.set()
        self.healthy = True
        self.answers_requests = True
        self.paused = None  # an event that a sync waits for
        self._gaps = list(gaps)  # added to the probe's log-probs, one per sync; the last one stays
        self._broken_phase = broken_phase
        self._fail_starts = fail_starts
        self._token_s = token_s  # what a completion takes, which is one token
        self.completions = 0
        self._version = "default"
        self._http = None
        self._writers = set()

    async def start(self):
        self.starts += 1
        if self.elsewhere and self._http is not None:
            return
        if 1 < self.starts <= 1 + self._fail_starts:
            raise RunError("the fake server did not come up")
        self._http = await asyncio.start_server(self._serve, *self._address)
        self.url = "http://{}:{}".format(*self._http.sockets[0].getsockname())
        self.healthy = True

    def alive(self):
        return self._http is not None

    def tail(self, lines=20):
        return "the last line of its log"

    async def stop(self, *, at_once=False):
        self.ended += at_once
        if self.elsewhere and at_once:
            return
        if self._http is not None:
            self._http.close()
            for writer in self._writers:
                writer.close()
            self._http = None

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                path = head.split()[1]
                length = (
                    int(head.split("content-length: ")[1].split()[0])
                    if head.startswith("post ")
                    else 0
                )
                body = json.loads(await reader.readexactly(length) or "{}")
                status, answer = await self._answer(path, body)
                data = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
        except (asyncio.IncompleteReadError, ConnectionError):
            """The client is gone."""
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, path, body):
        self.seen.append(path)
        if path == "/health":
            return (200 if self.healthy else 503), {}
        if path.startswith("/posttrain/sees"):
            return 200, {"sees": True}
        if path == "/posttrain/about":
            return 200, {"host": "far", "pid": 1, "whole": True}
        if path != "/inference/v1/generate":
            if self._broken_phase and self._broken_phase in path:
                return 500, {"error": {"message": "planted fault"}}
            if self.paused is not None:
                await self.paused.wait()
            self._version = body.get("weight_version", self._version)
            return 200, {}
        ids, sampling = body["token_ids"], body["sampling_params"]
        if "prompt_logprobs" in sampling:
            gap = self._gaps.pop(0) if len(self._gaps) > 1 else self._gaps[0]
            return 200, {"prompt_logprobs": [None, *({str(i): {"logprob": gap}} for i in ids[1:])]}
        while not self.answers_requests and body.get("request_id"):
            await asyncio.sleep(0.01)
        version = self._version
        await self.release.wait()
        await asyncio.sleep(self._token_s)
        self.completions += 1
        return 200, {"choices": [_choice(version)]}


def _choice(version):
    return {
        "finish_reason": "length",
        "token_ids": [7],
        "logprobs": {"content": [{"logprob": -1.0}]},
        "weight_versions": [{"version": version, "start": 0, "end": 1}],
    }
