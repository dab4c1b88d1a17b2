"""Plays an episode with scripted answers, in the order in which ``posttrain.rollout`` calls."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from envs import Environment, Task
from rewards import Score


async def played(
    environment: Environment, task: Task, answers: list[Any]
) -> tuple[list[dict[str, Any]], Score | None]:
    """The whole conversation and the score; an answer is a text or a message."""
    env = environment.make()
    try:
        messages = list(await settled(env.start(task, seed=0)))
        score = None
        for answer in answers:
            said = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
            messages.append(said)
            step = await settled(env.step(said))
            messages += step.messages
            score = step.score
            if step.done:
                break
        return messages, score
    finally:
        await settled(env.close())


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def play(environment: Environment, answers: list[Any], task: Task | None = None) -> Any:
    return asyncio.run(played(environment, task or environment.tasks.train(0), answers))


def called(name: str, **arguments: Any) -> dict[str, Any]:
    """A message of the model's with one tool call."""
    function = {"name": name, "arguments": arguments}
    call = {"id": "call00000", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
