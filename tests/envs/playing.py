"""Plays one episode of an environment by a script, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from envs import Environment, Step
from envs.single_turn import settled


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": tool, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "0", "function": function}]}


def play(environment: Environment, replies: Sequence[Any]) -> list[Step]:
    """The steps that answer ``replies`` (texts or messages) in one episode."""

    async def episode() -> list[Step]:
        env = environment.make()
        try:
            await settled(env.start(environment.tasks.train(0), seed=0))
            steps = []
            for reply in replies:
                if isinstance(reply, str):
                    reply = {"role": "assistant", "content": reply}
                steps.append(await settled(env.step(reply)))
            return steps
        finally:
            await settled(env.close())

    return asyncio.run(episode())


def told(step: Step) -> str:
    return "\n".join(str(message["content"]) for message in step.messages)
