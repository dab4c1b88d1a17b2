"""Rejection sampling beside the bare server, and its memory over many records.

``rate``: completion tokens/s of ``data_gen.rejection_sample``, from the call to the published data
set, over those of the leanest loop we know (aiohttp, 0.1 ms of processor time a request) that posts
the same requests, byte for byte, to the same server at the same concurrency and reads the replies.
The two take turns, and turns at being first; the JSON line has medians. ``--tokens N`` has every
answer be N tokens long, where the server knows ``ignore_eos``, as vLLM does; 0 leaves it to the
model. ``memory``: peak resident memory of a run over many records against a server that answers at
once (started here, a process of its own), every tenth of the way.

    posttrain serve runs/quickstart/sft --port 8000      # or any OpenAI-compatible server
    python scripts/bench/data_gen.py rate --url http://127.0.0.1:8000/v1 --model sft --tokens 128
    python scripts/bench/data_gen.py memory --records 100000
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts this folder first in its path, where this file would hide the package of its name.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

import argparse  # noqa: E402
import asyncio  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import aiohttp  # noqa: E402

import data_gen  # noqa: E402
import envs  # noqa: E402
import rewards  # noqa: E402
from data_gen.records import derived_seed  # noqa: E402
from data_gen.sampling import Sampling  # noqa: E402

FAKE = "fake"
ENV = "reasoning_gym:chain_sum"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    rate = what.add_parser("rate")
    rate.add_argument("--url", required=True)
    rate.add_argument("--model", required=True)
    rate.add_argument("--tasks", type=int, default=100)
    rate.add_argument("--samples", type=int, default=8)
    rate.add_argument("--tokens", type=int, default=0, help="of every answer; 0: up to 64")
    rate.add_argument("--concurrency", type=int, default=64)
    rate.add_argument("--repeats", type=int, default=5)
    memory = what.add_parser("memory")
    memory.add_argument("--records", type=int, default=100_000)
    memory.add_argument("--samples", type=int, default=8)
    what.add_parser("serve")  # the server of ``memory``
    options = parser.parse_args()
    if options.what == "serve":
        asyncio.run(serve())
    else:
        print(json.dumps(compare(options) if options.what == "rate" else grow(options)))


# rate


@dataclass(frozen=True)
class Run:
    """Tokens written, and what it took."""

    tokens: int
    wall_s: float
    cpu_s: float  # of this process

    @property
    def rate(self) -> float:
        return self.tokens / self.wall_s


def compare(options: argparse.Namespace) -> dict[str, Any]:
    pairs = []
    for repeat in range(options.repeats + 1):
        order = [ours, bare] if repeat % 2 else [bare, ours]
        requests = requests_of(options, seed=repeat)
        found = {play.__name__: timed(play, options, repeat, requests) for play in order}
        pairs.append((found["ours"], found["bare"]))
    del pairs[0]  # it warms up
    ratios = [first.rate / second.rate for first, second in pairs]
    n = options.tasks * options.samples

    def median(of: Callable[[Run], float], which: int) -> float:
        return statistics.median(of(pair[which]) for pair in pairs)

    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ours_tokens_per_s": round(median(lambda run: run.rate, 0)),
        "server_tokens_per_s": round(median(lambda run: run.rate, 1)),
        "ours_cpu_ms": round(median(lambda run: 1e3 * run.cpu_s / n, 0), 2),
        "bare_cpu_ms": round(median(lambda run: 1e3 * run.cpu_s / n, 1), 2),
        "tokens_per_answer": round(median(lambda run: run.tokens / n, 1), 1),
        "requests": n,
        "repeats": options.repeats,
    }


def timed(play: Callable[..., int], options: argparse.Namespace, seed: int, requests: Any) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = play(options, seed, requests)
    return Run(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    extra = {"ignore_eos": True} if options.tokens else {}
    return {"samples": options.samples, "max_tokens": options.tokens or 64, "extra": extra}


def ours(options: argparse.Namespace, seed: int, _: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        server = data_gen.Server(options.url, options.model, concurrency=options.concurrency)
        more = {**sampling(options), "seed": seed, "quiet": True}
        data_gen.rejection_sample(envs.load(ENV), server, out, n_tasks=options.tasks, **more)
        requests = json.loads((out / "summary.json").read_text())["requests"]
    return int(requests["completion_tokens"])


def bare(options: argparse.Namespace, _: int, requests: list[dict[str, Any]]) -> int:
    return asyncio.run(_bare(options, requests))


def requests_of(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """What ``ours`` asks."""
    tasks, plan = envs.load(ENV).tasks, Sampling(**sampling(options))
    bodies = []
    for task in map(tasks.train, range(options.tasks)):
        messages = [dict(message) for message in task.messages]
        for one in plan.plans(task, [options.model], seed):
            body = {name: value for name, value in one.items() if value is not None}
            turn = {"messages": messages, "seed": derived_seed(one["seed"], 0)}
            bodies.append(body | turn)
    return bodies


async def _bare(options: argparse.Namespace, bodies: list[dict[str, Any]]) -> int:
    left, tokens = iter(bodies), 0
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:

        async def worker() -> None:
            nonlocal tokens
            for body in left:
                async with http.post(f"{options.url}/chat/completions", json=body) as answer:
                    said = json.loads(await answer.read())
                assert said["choices"][0]["message"]
                tokens += said["usage"]["completion_tokens"]

        await asyncio.gather(*(worker() for _ in range(options.concurrency)))
    return tokens


# memory


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory at each tenth of a run, in MB."""
    n_tasks = options.records // options.samples
    seen: list[int] = []
    calls = itertools.count()  # rewards run in threads

    @rewards.register("note_memory")
    def note_memory(completion: str, **columns: Any) -> float:
        if next(calls) % max(1, options.records // 10) == 0:
            seen.append(round(_resident_mb()))
        return 1.0

    rows = [{"id": str(i), "prompt": f"Say {i}."} for i in range(n_tasks)]
    env = envs.from_tasks(rows, reward="note_memory", held_out=[{"id": "h", "prompt": "?"}])
    command = [sys.executable, __file__, "serve"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            started = time.perf_counter()
            out = Path(folder) / "out"
            data = data_gen.rejection_sample(
                env,
                data_gen.Server(url, FAKE, concurrency=64),
                out,
                n_tasks=n_tasks,
                samples=options.samples,
                keep="judged",
                filters=(),
                quiet=True,
            )
            seconds = time.perf_counter() - started
            kept = len(data)
        finally:
            server.terminate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"records": kept, "mb_by_tenth": seen, "peak_mb": peak, "records_per_s": kept / seconds}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def serve() -> None:
    """Answers every request at once with forty words; prints its URL first."""
    text = " ".join(["word"] * 40)
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 40}
    completion = json.dumps({"choices": [choice], "usage": usage}).encode()
    models = json.dumps({"data": [{"id": FAKE}]}).encode()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().split("\r\n")
                length = next((int(x[15:]) for x in lines if x.startswith("content-length:")), 0)
                await reader.readexactly(length)
                body = completion if length else models
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
