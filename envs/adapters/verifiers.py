"""Environments of the package ``verifiers``: ``envs.load("verifiers:NAME")``, ``from_verifiers``.

**v0** environments (``load_environment``, ``vf.SingleTurnEnv``, ``MultiTurnEnv``, ``ToolEnv``, ...)
run as they are: their own loop plays the episode, with a client of ours that asks the policy. Their
rubric gives the score, its functions are the score's ``parts``. An environment that ends with an
error is not judged. Refused: rubrics that compare a group of rollouts, and a conversation that is
rewritten between turns (the tokens of earlier turns must stay as sampled).

**v1** task sets (``vf.Taskset``) give tasks with a prompt and rewards on the trace; the episode is
one question and one answer. Refused, since they need verifiers' harness and a runtime that model
code runs in: tasks with tool servers, a container or image, ``setup`` or ``finalize`` of their own,
and rewards that ask for the runtime.

The evaluation set of a v0 environment is held out where it has one; else a hash decides.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.data import Columns, DataTasks
from envs.function_env import Model, from_function
from envs.protocol import Environment, Message, Task, ToolSpec
from envs.splitting import PERCENT
from rewards import Outcome, Score, UsageError
from rewards.calling import as_score

_COLUMNS = Columns(prompt="(none)", messages="messages")


def load_verifiers(
    name: str, *, seed: int = 0, held_out_percent: int = PERCENT, limit: int = 0, **args: Any
) -> Environment:
    """The installed environment or task set ``name``; ``args`` go to it. Raises UsageError.

    ``limit`` is how many tasks of a v1 task set are taken; an infinite one needs it.
    """
    _imported()
    found = _taskset(name, args)
    if found is None:
        from verifiers import load_environment

        try:
            found = load_environment(name, **args)
        except Exception as error:  # boundary: loaders of others raise anything
            raise UsageError(f"verifiers:{name} can't be loaded: {error}") from error
    return from_verifiers(
        found, name=f"verifiers:{name}", seed=seed, held_out_percent=held_out_percent, limit=limit
    )


def from_verifiers(
    environment: Any,
    *,
    name: str = "verifiers",
    seed: int = 0,
    held_out_percent: int = PERCENT,
    limit: int = 0,
) -> Environment:
    """A v0 ``vf.Environment`` or a v1 ``vf.Taskset`` as an environment of ours."""
    _imported()
    from verifiers.v1 import Taskset

    order = {"name": name, "seed": seed, "held_out_percent": held_out_percent}
    if isinstance(environment, Taskset):
        return _from_taskset(environment, order, limit)
    return _from_v0(environment, order)


def _imported() -> None:
    try:
        import verifiers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"verifiers is not installed ({error}): pip install 'posttrain[verifiers]'; "
            "docs/environments.md says what to do beside vLLM"
        ) from error


def _taskset(name: str, args: Mapping[str, Any]) -> Any:
    """The v1 task set that the package ``name`` exports, or None.

    Found here and not by verifiers' loader: that first imports the task sets that come with it,
    which need the MCP SDK 1.
    """
    from pydantic import ValidationError
    from verifiers.v1 import Taskset, TasksetConfig
    from verifiers.v1.utils.generic import concrete_type

    module_name = name.rsplit("/", 1)[-1].partition("@")[0].replace("-", "_").lower()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise UsageError(f"verifiers:{name} can't be imported: {error}") from error
        return None  # a v0 environment may be called otherwise
    exported = [getattr(module, one, None) for one in getattr(module, "__all__", ())]
    kinds = [one for one in exported if isinstance(one, type) and issubclass(one, Taskset)]
    if not kinds:
        return None
    config = concrete_type(kinds[0], TasksetConfig, origin=Taskset) or TasksetConfig
    try:
        return kinds[0](config.model_validate({**args, "id": name}))
    except ValidationError as error:
        raise UsageError(f"verifiers:{name}: {error}") from error


# v0


def _from_v0(environment: Any, order: dict[str, Any]) -> Environment:
    name = order["name"]
    if environment.requires_group_rollouts:
        raise UsageError(f"{name}: its rubric compares a group of rollouts, which has no adapter")
    rows = _v0_rows(environment.get_dataset())
    aside = None
    if environment.eval_dataset is not None or environment.eval_dataset_source is not None:
        aside = _v0_rows(environment.get_eval_dataset())
    tasks = DataTasks(rows, columns=_COLUMNS, held_out_rows=aside, **order)

    async def play(task: Task, model: Model) -> Score:
        row = {"prompt": [dict(m) for m in task.messages], "answer": task.answer}
        known = {**row, **task.columns["row"]}
        output = await environment.run_rollout(known, _v0_client(model), "policy", {})
        if output.get("error"):
            raise RuntimeError(f"the environment failed: {output['error']}")
        return _score(output["reward"], output["metrics"])

    tools = [
        ToolSpec(tool.name, tool.description, tool.parameters)
        for tool in environment.tool_defs or ()
    ]
    return from_function(play, tasks, name=name, tools=tools)


def _v0_rows(dataset: Any) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(dataset.to_list()):
        rest = {key: value for key, value in row.items() if key not in ("prompt", "answer")}
        messages = [_without_empty(one) for one in row["prompt"]]
        answer = row.get("answer") or None  # verifiers writes "" where there is none
        rows.append(
            {"id": str(row.get("example_id", number)), "messages": messages, "answer": answer}
            | {"row": rest | {"answer": row.get("answer", "")}}
        )
    return rows


def _without_empty(message: Mapping[str, Any]) -> dict[str, Any]:
    """A table of messages holds None for what only some of them have."""
    return {key: value for key, value in message.items() if value is not None}


def _v0_client(model: Model) -> Any:
    """A client of verifiers' that asks our policy."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage, ToolCall, Usage

    class PolicyClient(Client):  # type: ignore[type-arg]
        """Only ``get_response`` is called; what it would be built of has no meaning here."""

        async def get_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
        ) -> Response:
            reply = await self.client.go_on(_v0_conversation(prompt))
            calls = [
                ToolCall(
                    id=call["id"],
                    name=call["function"]["name"],
                    arguments=json.dumps(call["function"]["arguments"]),
                )
                for call in reply.get("tool_calls", ())
            ]
            message = ResponseMessage(
                content=reply["content"],
                tool_calls=calls or None,
                finish_reason="tool_calls" if calls else "stop",
                is_truncated=False,
            )
            usage = Usage(prompt_tokens=0, reasoning_tokens=0, completion_tokens=0, total_tokens=0)
            return Response(id="policy", created=0, model=model, usage=usage, message=message)

        def setup_client(self, config: Any) -> Any: ...

        async def to_native_tool(self, tool: Any) -> Any: ...

        async def to_native_prompt(self, messages: Any) -> Any: ...

        async def get_native_response(self, *args: Any, **kwargs: Any) -> Any: ...

        async def raise_from_native_response(self, response: Any) -> None: ...

        async def from_native_response(self, response: Any) -> Any: ...

        async def close(self) -> None: ...

    return PolicyClient(model)


def _v0_conversation(prompt: Sequence[Any]) -> list[Message]:
    """verifiers' messages in OpenAI's form; a tool's result names its tool, as templates ask."""
    messages = [_v0_message(one) for one in prompt]
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls", ())
    }
    return [
        {**one, "name": names.get(one["tool_call_id"], "")} if one["role"] == "tool" else one
        for one in messages
    ]


def _v0_message(message: Any) -> Message:
    """A message of verifiers', in OpenAI's form."""
    content = message.content
    if not isinstance(content, str) and content is not None:
        content = "".join(_part(part) for part in content)
    plain: dict[str, Any] = {"role": message.role, "content": content or ""}
    if message.role == "tool":
        plain["tool_call_id"] = message.tool_call_id
    for call in getattr(message, "tool_calls", None) or ():
        function = {"name": call.name, "arguments": json.loads(call.arguments)}
        plain.setdefault("tool_calls", []).append(
            {"id": call.id, "type": "function", "function": function}
        )
    return plain


def _part(part: Any) -> str:
    kind = part["type"] if isinstance(part, Mapping) else part.type
    if kind != "text":
        raise ValueError(f"only text can be shown to the model, not {kind}")
    return str(part["text"] if isinstance(part, Mapping) else part.text)


# v1


def _from_taskset(taskset: Any, order: dict[str, Any], limit: int) -> Environment:
    name = order["name"]
    if taskset.INFINITE and not limit:
        raise UsageError(f"{name} has no end: say with limit= how many of its tasks to take")
    if type(taskset).toolsets(taskset.config):
        raise UsageError(f"{name} has tool servers, which need verifiers' own harness")
    by_id = {}
    for number, task in enumerate(itertools.islice(iter(taskset), limit or None)):
        _check_v1(task, f"{name}, task {number}")
        by_id[task.key] = task
    rows = [
        {"id": key, "messages": _v1_prompt(task), "answer": getattr(task.data, "answer", None)}
        for key, task in by_id.items()
    ]
    tasks = DataTasks(rows, columns=_COLUMNS, **order)

    async def play(task: Task, model: Model) -> Score:
        reply = await model.ask(*task.messages)
        return await _v1_score(by_id[task.task_id], task.messages, str(reply["content"]))

    return from_function(play, tasks, name=name)


def _check_v1(task: Any, where: str) -> None:
    """Raises UsageError for what one question and one answer cannot be made of."""
    from verifiers.v1 import Task as V1Task

    kind = type(task)
    hooks = [
        *task.hooks("reward"),
        *task.hooks("metric"),
        *(j.score for j in task.plugged_judges()),
    ]
    reasons = {
        "has no prompt": task.data.prompt is None,
        "needs a container": task.NEEDS_CONTAINER or task.data.image is not None,
        "has tool servers": bool(kind.toolsets(task.config)),
        "has a setup or finalize of its own": kind.setup is not V1Task.setup
        or kind.finalize is not V1Task.finalize,
        "has a reward that asks for the runtime": any(map(_needs_runtime, hooks)),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is not None:
        raise UsageError(f"{where} {why}; only tasks of one question and one answer are adapted")


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is parameter.empty


def _v1_prompt(task: Any) -> list[Message]:
    data = task.data
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*system, {"role": "user", "content": data.prompt}]
    return [*system, *(_v0_message(message) for message in data.prompt)]


async def _v1_score(task: Any, prompt: Sequence[Message], answer: str) -> Score:
    """What the task's own rewards say of a trace of one turn."""
    from verifiers.v1 import AgentConfig, Response, Trace
    from verifiers.v1.dialects import parse_message
    from verifiers.v1.graph import prepare_turn
    from verifiers.v1.state import state_cls
    from verifiers.v1.trace import AgentInfo, TraceTask
    from verifiers.v1.types import AssistantMessage

    told = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = AgentInfo(config=AgentConfig(model="policy"))
    trace = Trace(task=told, state=state_cls(type(task))(), agent=agent)
    turn = prepare_turn(trace, [parse_message(dict(message)) for message in prompt])
    reply = AssistantMessage(content=answer)
    turn.commit(
        Response(id="policy", created=0, model="policy", message=reply, finish_reason="stop")
    )
    trace.stop("agent_completed")
    await task.score(trace)
    parts = {name: one.score for name, one in trace.rewards.items() if one is not None}
    return _score(trace.reward, parts | dict(trace.metrics))


def _score(reward: Any, parts: Mapping[str, Any]) -> Score:
    known = {name: float(value) for name, value in (parts or {}).items() if value is not None}
    score = as_score(reward)
    right = score.outcome is Outcome.CORRECT
    return Score(score.value, Outcome.CORRECT if right else Outcome.WRONG, known)
