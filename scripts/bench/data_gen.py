"""Rejection sampling beside the bare server, and its memory over many records.

``rate``: completion tokens/s of ``data_gen.rejection_sample`` over those of a loop that posts the
same requests to the same server at the same concurrency and throws the replies away. The runs
alternate; the JSON line has medians. ``memory``: peak resident memory of a run over many records
against a server that answers at once (started here, a process of its own), every tenth of the way.

    posttrain serve runs/quickstart/sft --port 8000      # or any OpenAI-compatible server
    python scripts/bench/data_gen.py rate --url http://127.0.0.1:8000/v1 --model sft
    python scripts/bench/data_gen.py memory --records 100000
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts this folder first in its path, where this file would hide the package of its name.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

import argparse  # noqa: E402
import asyncio  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import httpx  # noqa: E402

import data_gen  # noqa: E402
import envs  # noqa: E402
import rewards  # noqa: E402
from data_gen.servers import read_reply  # noqa: E402

FAKE = "fake"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    rate = what.add_parser("rate")
    rate.add_argument("--url", required=True)
    rate.add_argument("--model", required=True)
    rate.add_argument("--tasks", type=int, default=100)
    rate.add_argument("--samples", type=int, default=8)
    rate.add_argument("--max-tokens", type=int, default=64)
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


def compare(options: argparse.Namespace) -> dict[str, Any]:
    ratios, ours, bare = [], [], []
    for repeat in range(options.repeats + 1):
        first = our_rate(options, seed=2 * repeat)
        second = bare_rate(options, seed=2 * repeat + 1)
        if repeat:  # the first pair warms up
            ours.append(first)
            bare.append(second)
            ratios.append(first / second)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ours_tokens_per_s": round(statistics.median(ours)),
        "server_tokens_per_s": round(statistics.median(bare)),
        "requests": options.tasks * options.samples,
        "repeats": options.repeats,
    }


def our_rate(options: argparse.Namespace, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        started = time.perf_counter()
        data_gen.rejection_sample(
            envs.load("reasoning_gym:chain_sum"),
            data_gen.Server(options.url, options.model, concurrency=options.concurrency),
            out,
            n_tasks=options.tasks,
            samples=options.samples,
            max_tokens=options.max_tokens,
            seed=seed,
            quiet=True,
        )
        seconds = time.perf_counter() - started
        requests = json.loads((out / "summary.json").read_text())["requests"]
    return float(requests["completion_tokens"]) / seconds


def bare_rate(options: argparse.Namespace, seed: int) -> float:
    return asyncio.run(_bare_rate(options, seed))


async def _bare_rate(options: argparse.Namespace, seed: int) -> float:
    tasks = envs.load("reasoning_gym:chain_sum").tasks
    bodies = [
        {
            "model": options.model,
            "messages": [dict(message) for message in tasks.train(i).messages],
            "temperature": 1.0,
            "max_tokens": options.max_tokens,
            "seed": (seed * options.tasks + i) * options.samples + k,
        }
        for i in range(options.tasks)
        for k in range(options.samples)
    ]
    left, tokens = iter(bodies), 0

    async def worker() -> None:
        nonlocal tokens
        # Certificates are slow to load, and for every worker anew.
        async with httpx.AsyncClient(timeout=600, trust_env=False, verify=False) as http:
            for body in left:
                answer = await http.post(f"{options.url}/chat/completions", json=body)
                tokens += read_reply(answer.text, options.model).completion_tokens

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(options.concurrency)))
    return tokens / (time.perf_counter() - started)


# memory


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory at each tenth of a run, in MB."""
    n_tasks = options.records // options.samples
    seen: list[int] = []
    calls = 0

    @rewards.register("note_memory")
    def note_memory(completion: str, **columns: Any) -> float:
        nonlocal calls
        if calls % max(1, options.records // 10) == 0:
            seen.append(round(_resident_mb()))
        calls += 1
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
