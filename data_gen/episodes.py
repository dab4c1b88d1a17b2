"""Plays one episode of an environment against a chat server, message by message.

The environment is the one that RL trains on (``envs.protocol``); here the model is behind a chat
route, so there are messages and no token ids, and it is the server that reads the tool calls. A
score that is not the model's doing, because the environment or reward raised or overran, is a Score
without a value.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import envs
import rewards
from data_gen.pipeline import Ask
from data_gen.records import derived_seed
from envs import Env, Environment, Message, Task, ToolSpec
from rewards import Outcome, Score


@dataclass(frozen=True, slots=True)
class Rules:
    """How episodes are played and judged."""

    environment: Environment
    reward: Callable[..., Any] | None = None  # replaces the environment's own score
    max_turns: int = 8
    timeout_s: float = 60.0  # of one call to the environment or the reward


@dataclass(slots=True)
class Played:
    """One episode, over."""

    messages: list[Message] = field(default_factory=list)
    score: Score | None = None
    n_tokens: int = 0
    end: str = ""  # the finish reason of the last reply, or max_turns
    tools: Sequence[dict[str, Any]] = ()  # that the model was told of, in the chat route's form

    @property
    def judged(self) -> Score:
        """The score; an episode that never got one could not be judged."""
        if self.score is None:
            return Score(None, Outcome.ERROR, detail="the environment never gave a score")
        return self.score


async def play(rules: Rules, task: Task, ask: Ask, sampling: Mapping[str, Any]) -> Played:
    """Play one episode. ``sampling`` is the request's, ``model`` and ``seed`` included.

    Raises Unanswered when a request got no reply.
    """
    played = Played()
    env = rules.environment.make()
    try:
        await _turns(rules, env, task, ask, sampling, played)
        if rules.reward is not None:
            case = envs.case_of(task, played.messages)
            played.score = await rewards.apply(rules.reward, case, timeout_s=rules.timeout_s)
    except _EnvFailed as failure:
        played.score, played.end = failure.score, "env_error"
    finally:
        try:
            await _call(rules, env.close)
        except _EnvFailed:
            pass  # the score stands
    return played


class _EnvFailed(Exception):
    def __init__(self, score: Score) -> None:
        super().__init__(score.detail)
        self.score = score


async def _turns(
    rules: Rules, env: Env, task: Task, ask: Ask, sampling: Mapping[str, Any], played: Played
) -> None:
    played.messages += await _call(rules, env.start, task, seed=derived_seed(task.task_id))
    if hasattr(env, "tools"):
        specs: Sequence[ToolSpec] = await _call(rules, env.tools)
        played.tools = [spec.as_openai() for spec in specs]
    for turn in range(rules.max_turns):
        seed = derived_seed(sampling["seed"], turn)
        reply = await ask(played.messages, tools=played.tools, **{**sampling, "seed": seed})
        played.messages.append(reply.message)
        played.n_tokens += reply.completion_tokens
        played.end = reply.finish_reason
        step = await _call(rules, env.step, with_calls_read(reply.message))
        played.score = step.score if step.score is not None else played.score
        if step.done or reply.finish_reason == "length":
            return
        played.messages += step.messages
    played.end = "max_turns"


def with_calls_read(message: Message) -> Message:
    """A reply with its tool calls as an environment takes them: arguments read, and what can't be
    read under ``invalid_tool_calls``. A chat route has arguments as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls, invalid = [], []
    for call in message["tool_calls"]:
        function = call.get("function") or {}
        try:
            arguments = json.loads(str(function.get("arguments") or "{}"))
        except ValueError as error:
            invalid.append(f"{function.get('name')}: the arguments are no JSON ({error})")
            continue
        if isinstance(arguments, dict):
            read = {"name": str(function.get("name")), "arguments": arguments}
            calls.append({"id": call.get("id"), "function": read})
        else:
            invalid.append(f"{function.get('name')}: the arguments are no JSON object")
    return {**message, "tool_calls": calls, "invalid_tool_calls": invalid}


async def _call(rules: Rules, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One call under its deadline; a plain method runs in a thread."""
    name = f"{rules.environment.name}.{method.__name__}"
    try:
        async with asyncio.timeout(rules.timeout_s):
            if inspect.iscoroutinefunction(method):
                return await method(*args, **kwargs)
            return await asyncio.to_thread(method, *args, **kwargs)
    except TimeoutError:
        detail = f"{name} gave no answer within {rules.timeout_s:g} s"
        raise _EnvFailed(Score(None, Outcome.TIMEOUT, detail=detail)) from None
    except Exception:  # noqa: BLE001  boundary: a user's environment may raise anything
        detail = f"{name} raised\n{traceback.format_exc(limit=-4)}"
        raise _EnvFailed(Score(None, Outcome.ERROR, detail=detail)) from None
