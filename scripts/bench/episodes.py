"""Measures many episodes at once: how much of a run's time is the loop's own, beside slow tools.

::

    python scripts/bench/episodes.py --episodes 2000 --tool-ms 50

One JSON line. Each episode calls a tool that takes ``--tool-ms``, ``--calls`` times, then answers;
an engine that answers at once stands in for the model. The same episodes are played with plain and
with async tools. ``waits_s`` is what the waits alone need (plain tools share ``WORLDS.threads``
threads), ``ratio`` is the best round by that. ``turn_ms`` is the processor time of the process per
turn of the model, best round: the interpreter's work, which other programs on the machine stretch
in seconds and hardly in this. Memory is the growth of the resident set from the second round to
the last.

What is measured is everything of ``posttrain.rollout`` and ``envs.tools``; the engine answers in
no time, and there is no tokenizer, so a run with a model has more to do per turn and more to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
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


class AtOnce:
    """An engine that has always finished."""

    async def generate(self, request: Any) -> Completion:
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


def play(env: type[Waiting], episodes: int, calls: int) -> tuple[float, float]:
    """Seconds of all episodes, played at once, and of the processor.

    Raises RuntimeError when one is not correct.
    """
    environment = envs.Episodes("bench", envs.generated(lambda rng: TASK), env)
    sampling, limits = Sampling(1), EpisodeLimits(calls + 1, 100_000, 60.0)

    async def all_at_once() -> tuple[float, float]:
        engine = cast(Any, AtOnce())
        players = [
            Player(engine, environment, cast(Any, Script(calls)), sampling, limits)
            for _ in range(episodes)
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
    places = min(WORLDS.threads, args.episodes) if env is Plain else args.episodes
    waits = args.episodes / places * args.calls * args.tool_ms / 1000
    env.pause = args.tool_ms / 1000
    took: list[float] = []
    cpu: list[float] = []
    memory: list[float] = []
    for _ in range(args.rounds):
        for kept, seconds in zip((took, cpu), play(env, args.episodes, args.calls), strict=True):
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
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    line = {"episodes": args.episodes, "tool_ms": args.tool_ms, "calls": args.calls}
    print(json.dumps(line | {"async": measure(Async, args), "plain": measure(Plain, args)}))


if __name__ == "__main__":
    main()
