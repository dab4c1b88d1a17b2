"""``posttrain eval`` beside the bare speed of its server, on all of GSM8K's test set.

    python scripts/bench/evaluation.py gsm8k_test.jsonl.gz --model runs/quickstart/sft

One vLLM server, started here. By turns, each from an empty prefix cache:

    engine      the rollout engine alone: the token ids of all prompts in, completions out
    evaluation  the whole: rows read, prompts rendered and checked, answers generated, graded and
                written to disk, numbers with their intervals
    server      the same requests posted to the bare server, no log-probs asked for, its replies
                thrown away: what the engine itself costs

Same prompts, greedy, same limit, same number of requests at once. The JSON line has medians over
the rounds; ``ratio`` is that of completion tokens per second, evaluation over engine, and the aim
is 0.8. ``ratio_to_server`` is evaluation over bare server. ``ratio_by_cpu`` is that of the CPU time
of this process and the server, engine over evaluation: on a machine that others use too it can be
believed, and seconds cannot. The server's start is in none of them.

The quickstart's window of 512 tokens is too short for GSM8K's longest problems in its small
vocabulary, so a copy of the checkpoint with ``--window`` is served: what it answers is of no
interest here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts this folder first in its path, where this file would hide what has its name.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

import argparse  # noqa: E402
import asyncio  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Awaitable, Callable  # noqa: E402
from typing import Any  # noqa: E402

import psutil  # noqa: E402

from posttrain.engines.client import VllmClient  # noqa: E402
from posttrain.engines.vllm_engine import VllmEngine  # noqa: E402
from posttrain.evaluation.running import EvalJob, Ready, evaluate_on, make_ready  # noqa: E402
from posttrain.evaluation.sources import Wanted  # noqa: E402
from posttrain.types import Request, Sampling  # noqa: E402

TIMEOUT_S = 600.0
Measured = tuple[float, int]  # seconds, completion tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="GSM8K's test set: .jsonl or .jsonl.gz")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, default=0, help="problems; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-evaluation-") as folder:
        print(json.dumps(asyncio.run(compare(options, Path(folder)))))


async def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = widened(options.model, folder / "model", options.window)
    wanted = Wanted(f"gsm8k={options.data}", limit=options.limit, templates=1)

    def job(name: str) -> EvalJob:
        return EvalJob(str(model), wanted, folder / name, max_tokens=options.max_tokens)

    ready = make_ready(job("requests"))
    requests = requests_of(ready)
    engine = VllmEngine(ready.config, folder / "logs")
    await engine.start()
    most = ready.config.rollout.max_concurrency
    seconds: dict[str, list[float]] = {"server": [], "engine": [], "evaluation": []}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    tokens: dict[str, list[int]] = {name: [] for name in seconds}
    try:
        for number in range(options.rounds + 1):  # the first warms up
            runs: dict[str, Callable[[], Awaitable[Measured]]] = {
                "server": lambda: bare(engine, requests, most),
                "engine": lambda: alone(engine, requests),
                "evaluation": lambda n=number: whole(engine, job(f"round-{n}")),  # type: ignore[misc]
            }
            for name in sorted(runs, reverse=bool(number % 2)):
                await empty_cache(engine)
                before = cpu_seconds()
                spent, written = await runs[name]()
                used = cpu_seconds() - before
                print(f"{name}: {spent:.2f} s, {used:.2f} s of CPU", file=sys.stderr, flush=True)
                if number:
                    seconds[name].append(spent)
                    cpu[name].append(used)
                    tokens[name].append(written)
    finally:
        await engine.close()
    return summary(seconds, cpu, tokens, len(requests))


def widened(model: Path, to: Path, window: int) -> Path:
    """A copy of a checkpoint whose config allows this many tokens."""
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text())
    config["max_position_embeddings"] = max(window, config["max_position_embeddings"])
    (to / "config.json").write_text(json.dumps(config))
    return to


def requests_of(ready: Ready) -> list[Request]:
    """What the evaluation asks of its engine."""
    (suite,) = ready.suites
    found = []
    for index, task in enumerate(suite.tasks):
        ids = ready.chat.prompt_ids(task.messages)
        limit = min(ready.job.max_tokens, ready.window - len(ids))
        sampling = Sampling(limit, ready.job.temperature, ready.chat.stop_token_ids)
        found.append(Request(f"bench-{index}", ids, sampling, seed=0))
    return found


async def empty_cache(engine: VllmEngine) -> None:
    client = VllmClient(engine.urls[0], engine.limits)
    await client.command("/reset_prefix_cache", None, timeout_s=60.0, name="empty the cache")
    await client.close()


async def bare(engine: VllmEngine, requests: list[Request], most: int) -> Measured:
    """The server's own speed: replies are read to their end, and looked at after the clock."""
    slots = asyncio.Semaphore(most)
    client = VllmClient(engine.urls[0], engine.limits)  # idle connections would have been closed

    async def ask(request: Request) -> bytes:
        body = {
            "request_id": request.request_id,
            "token_ids": request.prompt_ids.tolist(),
            "sampling_params": {
                "max_tokens": request.sampling.max_tokens,
                "temperature": request.sampling.temperature,
                "stop_token_ids": list(request.sampling.stop_token_ids),
                "ignore_eos": True,
            },
        }
        async with slots:
            return await client.command(
                "/inference/v1/generate", body, timeout_s=TIMEOUT_S, name=request.request_id
            )

    started = time.perf_counter()
    replies = await asyncio.gather(*(ask(request) for request in requests))
    seconds = time.perf_counter() - started
    await client.close()
    return seconds, sum(len(json.loads(r)["choices"][0]["token_ids"]) for r in replies)


async def alone(engine: VllmEngine, requests: list[Request]) -> Measured:
    """The engine of ``posttrain``, which also asks for log-probs and reads them."""
    started = time.perf_counter()
    completions = await asyncio.gather(*(engine.generate(request) for request in requests))
    return time.perf_counter() - started, sum(map(len, completions))


async def whole(engine: VllmEngine, job: EvalJob) -> Measured:
    """Everything that ``posttrain eval`` does between its server's start and its last line."""
    started = time.perf_counter()
    result = await evaluate_on(engine, make_ready(job), report=lambda text: None)
    return time.perf_counter() - started, result["completion_tokens"]


def cpu_seconds() -> float:
    """Of this process and all below it: the server, its engine, and what grades."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def summary(
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
    tokens: dict[str, list[int]],
    requests: int,
) -> dict[str, Any]:
    work = {name: statistics.median(values) for name, values in cpu.items()}
    speed = {
        name: [n / s for n, s in zip(tokens[name], seconds[name], strict=True)] for name in seconds
    }
    rounds = list(zip(speed["evaluation"], speed["engine"], speed["server"], strict=True))
    median = {name: statistics.median(values) for name, values in speed.items()}
    return {
        "ratio": round(statistics.median(ours / engine for ours, engine, _ in rounds), 3),
        "ratio_lowest": round(min(ours / engine for ours, engine, _ in rounds), 3),
        "ratio_to_server": round(statistics.median(ours / server for ours, _, server in rounds), 3),
        "ratio_by_cpu": round(work["engine"] / work["evaluation"], 3),
        "tokens_per_s": {name: round(value) for name, value in median.items()},
        "seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in work.items()},
        "completion_tokens": statistics.median(tokens["evaluation"]),
        "requests": requests,
        "rounds": len(rounds),
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
