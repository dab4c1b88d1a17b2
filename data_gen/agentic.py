"""Trajectories with tools that a model simulates, for users that a model simulates, judged.

    tools -> tasks, each with a rubric, a user and a state of the world
    user <-> agent <-> tools   the user asks and answers; a tool reads and changes the state
    judge: every criterion of the rubric, on the whole trajectory -> kept when all are met

The large-scale synthesis of Kimi K2 (arXiv:2507.20534, section 3.1.1). A simulated tool is no real
one: it may be wrong, so use it for how to call tools and talk to users, and real environments
(``rejection_sample``) where results must be right. ``model`` acts; ``simulator`` writes the tasks,
plays user and tools, and judges.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError
from data_gen.pipeline import Ask, Item
from data_gen.records import Provenance, Record
from data_gen.running import Common, run
from data_gen.servers import Reply
from data_gen.simulation import (
    DONE,
    JUDGE,
    TASKS,
    TOOL,
    USER,
    is_task,
    read_json,
    transcript,
)
from data_gen.writing import Writing, flaw, rows_plan, said, source_rows, user, whole
from rewards import Outcome, Score

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "agentic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agentic(Writing):
    """How trajectories are made. Raises UsageError for what cannot work."""

    tasks: int = 3  # written for each set of tools
    max_turns: int = 20  # replies of the agent
    simulator: str = ""  # model that writes, plays and judges; "" is ``model``
    system: str = "Use the tools where they help. Ask the user for what you need to know."

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(tasks=self.tasks, max_turns=self.max_turns)


def agentic(toolsets: Any, servers: Any, out: str | Path, **settings: Any) -> Dataset:
    """Make trajectories over sets of tools.

    ``toolsets`` are rows, or a file of them, with ``tools``: a list of OpenAI tool specifications.
    ``settings`` are those of ``Agentic`` and ``Common``. Returns ``messages`` and ``tools`` (JSON)
    with ``task``, ``rubric`` and ``verdicts``. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Agentic)
    chosen = Agentic(**rest)
    rows = source_rows(toolsets, "tools")
    for number, row in enumerate(rows, start=1):
        _check_tools(row["tools"], number)
    make = _Agentic(chosen, common.seed)
    content = [row["tools"] for row in rows]
    plan = rows_plan(GENERATOR, make, chosen, common.seed, toolsets=(rows, content))
    return run(plan, servers, out, common)


@dataclass(slots=True)
class _Episode:
    """One trajectory in the making."""

    task: Mapping[str, Any]
    messages: list[dict[str, Any]]
    state: Any
    n_tokens: int = 0
    end: str = "max_turns"
    model: str = ""
    problem: str = ""
    seeds: tuple[Any, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class _Agentic:
    """The generator: an item is a set of tools."""

    settings: Agentic
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        tools = item.value["tools"]
        prompt = TASKS.format(n=self.settings.tasks, tools=json.dumps(tools))
        reply = await self._simulate(ask, prompt, (self.seed, item.key, "tasks"))
        found = read_json(said(reply))
        tasks = [one for one in found if is_task(one)] if isinstance(found, list) else []
        source = str(item.value.get("id") or item.key[:12])
        if not tasks:
            reason = flaw(reply) or "no task in the reply"
            columns = {"messages": user(said(reply)), "tools": json.dumps(tools)}
            return [Record(columns, Provenance(GENERATOR, source=source), dropped=reason)]
        async with asyncio.TaskGroup() as group:
            jobs = [
                group.create_task(self._one(ask, tools, task, (self.seed, item.key, i)))
                for i, task in enumerate(tasks[: self.settings.tasks])
            ]
        return [_record(job.result(), tools, source, i) for i, job in enumerate(jobs)]

    async def _one(
        self, ask: Ask, tools: Sequence[Any], task: Mapping[str, Any], seeds: tuple[Any, ...]
    ) -> tuple[_Episode, Score]:
        opening = [*user(str(task["opening"]), self.settings.system)]
        episode = _Episode(task, opening, task["state"], seeds=seeds)
        for turn in range(self.settings.max_turns):
            request = self.settings.request(*seeds, "agent", turn)
            reply = await ask(episode.messages, tools=tools, **request)
            episode.messages.append(reply.message)
            episode.n_tokens += reply.completion_tokens
            episode.model = reply.model
            if reply.finish_reason == "length" or not (reply.text.strip() or reply.tool_calls):
                episode.problem = "cut off" if reply.finish_reason == "length" else "empty"
                break
            if reply.tool_calls:
                await self._tools(ask, tools, episode, reply)
            elif await self._user(ask, episode):
                episode.end = "stop"
                break
            if episode.problem:
                break
        if not episode.problem and episode.end == "max_turns":
            episode.problem = "out of turns"
        return episode, await self._judged(ask, episode)

    async def _tools(self, ask: Ask, tools: Sequence[Any], episode: _Episode, reply: Reply) -> None:
        """Every call in turn, since each may change the state."""
        known = {tool["function"]["name"]: tool["function"] for tool in tools}
        for number, call in enumerate(reply.tool_calls):
            name = str(call.get("function", {}).get("name"))
            given = call.get("function", {}).get("arguments")
            if name not in known or not isinstance(read_json(str(given)), dict):
                result: Any = {"error": f"no tool {name}, or arguments that are no JSON object"}
            else:
                prompt = TOOL.format(
                    tool=json.dumps(known[name]), state=json.dumps(episode.state), arguments=given
                )
                seeds = (*episode.seeds, "tool", len(episode.messages), number)
                found = read_json(said(await self._simulate(ask, prompt, seeds)))
                if not isinstance(found, dict) or not {"result", "state"} <= set(found):
                    episode.problem = "the simulated tool gave no result"
                    return
                result, episode.state = found["result"], found["state"]
            content = result if isinstance(result, str) else json.dumps(result)
            episode.messages.append(
                {"role": "tool", "tool_call_id": call.get("id", ""), "content": content}
            )

    async def _user(self, ask: Ask, episode: _Episode) -> bool:
        """The user's next message; True when there is none."""
        prompt = USER.format(
            user=episode.task["user"],
            task=episode.task["task"],
            transcript=transcript(episode.messages, tools=False),
        )
        seeds = (*episode.seeds, "user", len(episode.messages))
        reply = await self._simulate(ask, prompt, seeds)
        if not said(reply) or reply.finish_reason == "length":
            episode.problem = "the simulated user said nothing"
            return False
        if DONE in said(reply):
            return True
        episode.messages.append({"role": "user", "content": said(reply)})
        return False

    async def _judged(self, ask: Ask, episode: _Episode) -> Score:
        """The share of the rubric that is met; ERROR where the verdict is none."""
        if episode.problem:
            return Score(None, Outcome.ERROR, detail=episode.problem)
        rubric = list(map(str, episode.task["rubric"]))
        prompt = JUDGE.format(
            task=episode.task["task"],
            transcript=transcript(episode.messages),
            rubric="\n".join(f"{i}. {one}" for i, one in enumerate(rubric, start=1)),
        )
        reply = await self._simulate(ask, prompt, (*episode.seeds, "judge"))
        found = read_json(said(reply))
        if not isinstance(found, list) or [type(one) for one in found] != [bool] * len(rubric):
            episode.problem = "no verdict"
            return Score(None, Outcome.ERROR, detail=episode.problem)
        share = sum(found) / len(rubric)
        if share < 1:
            episode.problem = "rubric not met"
        parts = {f"criterion_{i}": float(met) for i, met in enumerate(found, start=1)}
        return Score(share, Outcome.CORRECT if share == 1 else Outcome.WRONG, parts)

    async def _simulate(self, ask: Ask, prompt: str, seeds: tuple[Any, ...]) -> Reply:
        request = self.settings.request(*seeds)
        model = self.settings.simulator or self.settings.model
        return await ask(user(prompt), **request | {"model": model})


def _record(made: tuple[_Episode, Score], tools: Any, source: str, number: int) -> Record:
    episode, score = made
    made_by = Provenance(
        GENERATOR,
        source=source,
        model=episode.model,
        sample=number,
        n_tokens=episode.n_tokens,
        end=episode.end,
    )
    columns = {"messages": episode.messages, "tools": json.dumps(tools)}
    extra = {
        "task": str(episode.task["task"]),
        "rubric": list(map(str, episode.task["rubric"])),
        "final_state": json.dumps(episode.state),
    }
    return Record(columns, made_by, score, extra=extra, dropped=episode.problem)


def _check_tools(tools: Any, number: int) -> None:
    named = isinstance(tools, list) and all(
        isinstance(one, Mapping) and (one.get("function") or {}).get("name") for one in tools
    )
    if not named:
        raise UsageError(
            f"row {number}: tools is a list of "
            '{"type": "function", "function": {"name", "description", "parameters"}}'
        )
