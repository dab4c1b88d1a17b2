"""Measures many episodes at once: what the loop takes beside the waits for engine and tools.

::

    python scripts/bench/episodes.py --episodes 2000 --tool-ms 50
    python scripts/bench/episodes.py --engine-ms 500 1500

One JSON line. Each episode calls a tool that takes ``--tool-ms``, ``--calls`` times, then answers;
the engine takes a time between the two of ``--engine-ms`` for each turn, drawn by seed, or none.
The same episodes are played with plain and with async tools. ``waits_s`` is what the waits alone
need: the longest sum of one episode's (plain tools share ``WORLDS.threads`` threads, so their sum
over those, where that is longer); ``ratio`` is the best round by that. ``turn_ms`` is the processor
time of the process per turn of the model, best round: the interpreter's work, which other programs
on the machine stretch in seconds and hardly in this. Memory is the growth of the resident set from
the second round to the last.

What is measured is everything of ``posttrain.rollout`` and ``envs.tools``; there is no tokenizer,
and an engine's client has work of its own for each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

import envs
from envs import Task, ToolEnv
from posttrain.rollout import EpisodeLimits, Player
from posttrain.types import Completion, FinishReason, Sampling
from rewards import Outcome
from rewards.threads import WORLDS

IDS = np.asarray([1], dtype=np.int64)
TASK = Task("bench", (envs.user("?"),), answer="done")


class Waiting(ToolEnv):
    """One tool that waits, as ``pause`` says; plain and async are its two subclasses."""

    pause = 0.0

    def judge(self, message: envs.Message) -> bool:
        return bool(message["content"] == self.task.answer)


class Plain(Waiting):
    def look(self) -> str:
        """Waits."""
        time.sleep(self.pause)
        return "seen"


class Async(Waiting):
    async def look(self) -> str:
        """Waits."""
        await asyncio.sleep(self.pause)
        return "seen"


class Engine:
    """Of one episode: takes these seconds for its turns."""

    def __init__(self, turns_s: Sequence[float]) -> None:
        self.turns_s = iter(turns_s)

    async def generate(self, request: Any) -> Completion:
        if seconds := next(self.turns_s):
            await asyncio.sleep(seconds)
        floats = np.zeros(1, dtype=np.float32)
        return Completion(IDS, floats, np.zeros(1, dtype=np.int64), FinishReason.STOP)

    def leave(self) -> None:
        pass


class Script:
    """The chat of one episode, without a tokenizer: calls of ``look``, then the answer."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def prompt_ids(self, messages: Any, tools: Any) -> Any:
        return IDS

    def extend(self, prompt_ids: Any, completion_ids: Any, new: Any) -> Any:
        return np.concatenate([prompt_ids, completion_ids])

    def reply(self, completion_ids: Any, *, tools: bool) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            return {"role": "assistant", "content": "done"}
        call = {"function": {"name": "look", "arguments": {}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}


def engine_times(args: argparse.Namespace) -> list[list[float]]:
    """Seconds that the engine takes: [episodes][turns]."""
    draw = random.Random(0).uniform
    turns = range(args.calls + 1)
    return [[draw(*args.engine_ms) / 1000 for _ in turns] for _ in range(args.episodes)]


def play(env: type[Waiting], turns_s: list[list[float]]) -> tuple[float, float]:
    """Seconds of all episodes, played at once, and of the processor.

    Raises RuntimeError when one is not correct.
    """
    environment = envs.Episodes("bench", envs.generated(lambda rng: TASK), env)
    turns = len(turns_s[0])
    sampling, limits = Sampling(1), EpisodeLimits(turns, 100_000, 60.0)

    async def all_at_once() -> tuple[float, float]:
        players = [
            Player(
                cast(Any, Engine(one)), environment, cast(Any, Script(turns - 1)), sampling, limits
            )
            for one in turns_s
        ]
        started, cpu = time.perf_counter(), time.process_time()
        groups = await asyncio.gather(
            *(p.group(TASK, seed=0, where=(0, i), size=1) for i, p in enumerate(players))
        )
        took = time.perf_counter() - started, time.process_time() - cpu
        scores = [group.rollouts[0].score for group in groups]
        if any(score.outcome is not Outcome.CORRECT for score in scores):
            raise RuntimeError(f"an episode failed that cannot: {scores[0]}")
        return took

    return asyncio.run(all_at_once())


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def measure(env: type[Waiting], args: argparse.Namespace) -> dict[str, float]:
    """The best of the rounds, by the waits alone, and the growth of memory."""
    turns_s = engine_times(args)
    env.pause = args.tool_ms / 1000
    tools_s = args.calls * env.pause
    waits = max(map(sum, turns_s)) + tools_s
    if env is Plain:
        waits = max(waits, args.episodes * tools_s / WORLDS.threads)
    took: list[float] = []
    cpu: list[float] = []
    memory: list[float] = []
    for _ in range(args.rounds):
        for kept, seconds in zip((took, cpu), play(env, turns_s), strict=True):
            kept.append(seconds)
        memory.append(resident_mb())
    turns = args.episodes * (args.calls + 1)
    return {
        "s": round(min(took), 3),
        "waits_s": round(waits, 3),
        "ratio": round(min(took) / waits, 3),
        "turn_ms": round(1000 * min(cpu) / turns, 4),
        "grew_mb": round(memory[-1] - memory[1], 1),
        "resident_mb": round(memory[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--tool-ms", type=float, default=50.0)
    parser.add_argument("--engine-ms", type=float, nargs=2, default=[0.0, 0.0])
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    line = {"episodes": args.episodes, "tool_ms": args.tool_ms, "engine_ms": args.engine_ms}
    line["calls"] = args.calls
    print(json.dumps(line | {"async": measure(Async, args), "plain": measure(Plain, args)}))


if __name__ == "__main__":
    main()
