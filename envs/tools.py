"""Environments whose tools are Python methods.

    class Calculator(envs.ToolEnv):
        def multiply(self, a: int, b: int) -> int:
            \"\"\"The product of a and b.\"\"\"
            return a * b

        def judge(self, message):
            return float(message["content"].strip() == self.task.answer)

Every public method with type hints is a tool, its signature the schema, its docstring the
description; ``Annotated[int, "meaning"]`` describes a parameter. The model's messages with calls
are answered by tool messages; the first one without any is its answer, which ``judge`` scores.

A call that can't be run (no JSON, unknown tool, wrong arguments), a tool that raises and one that
overruns its deadline are told to the model, and counted. ``ToolFailure`` is for the environment's
own failures: it ends the episode, which then could not be judged.

A class without a ``judge`` of its own is made with a reward (``Calculator(rewards.load("exact"))``,
or ``rewards.judge.load(...)``: a rubric), which sees the whole conversation.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from envs.protocol import EndReason, Message, Step, Task, ToolSpec, instant
from envs.single_turn import case_of, settled
from rewards import Outcome, Reward, Score, UsageError, apply
from rewards.calling import as_score
from rewards.threads import WORLDS, in_thread

_OURS = {"start", "step", "close", "tools", "judge", "unfinished"}


class ToolFailure(Exception):
    """The environment itself is broken: the episode ends and is not judged."""


class ToolEnv:
    """One episode with tools; subclasses write tools and ``judge``."""

    task: Task
    call_timeout_s = 10.0  # of one call
    max_result_chars = 4000  # of one result; what is more is cut in the middle
    judge_timeout_s = 60.0  # of the reward
    _reward: Reward | None = None  # judges the answer where ``judge`` is not written
    conversation: tuple[Message, ...] = ()  # so far
    _names: tuple[str, ...] = ()  # of the tools; here and below of the class, made once
    _specs: tuple[ToolSpec, ...] = ()

    def __init__(self, reward: Reward | None = None) -> None:
        self._reward = reward

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # a tool that no schema can be made of is told at once
        cls._names = tuple(tool_names(cls))
        cls._specs = tuple(tool_spec(getattr(cls, name)) for name in cls._names)

    @instant
    def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        """The task's messages. A subclass that sets something up calls this too."""
        self.task, self.conversation = task, tuple(task.messages)
        return task.messages

    @instant
    def tools(self) -> Sequence[ToolSpec]:
        return self._specs

    async def step(self, message: Message) -> Step:
        """Run the calls, in order; without any, the message is the answer."""
        self.conversation += (message,)
        calls = message.get("tool_calls") or ()
        invalid = message.get("invalid_tool_calls") or ()
        if not calls and not invalid:
            score = as_score(await settled(self.judge(message)))
            return Step(score=score, done=True, info=_counted())
        started, errors, results = time.monotonic(), 0, []
        for call in calls:
            content, failed = await self._run(call["function"])
            errors += failed
            results.append(_tool_message(call["function"]["name"], content, call.get("id")))
        results += [
            _tool_message("", f"error: the call could not be read: {why}") for why in invalid
        ]
        self.conversation += tuple(results)
        info = _counted(len(calls), len(invalid), errors, time.monotonic() - started)
        return Step(messages=tuple(results), info=info)

    def judge(self, message: Message) -> Any:
        """Score the answer, a message without calls: a Score, float or bool; plain or async."""
        if self._reward is None:
            raise NotImplementedError(f"{type(self).__name__} needs judge(message), or a reward")
        case = case_of(self.task, self.conversation)
        return apply(self._reward, case, timeout_s=self.judge_timeout_s)

    @instant
    def unfinished(self, reason: EndReason) -> Score:
        """An episode that ran out of turns, tokens or time before it answered is wrong."""
        return Score(0.0, Outcome.WRONG, detail=f"ended without an answer: {reason}")

    @instant
    def close(self) -> None:
        """Nothing to release; a subclass that holds something does it here."""

    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        """Name -> tool; a subclass whose tools are another object's says so here."""
        return {name: getattr(self, name) for name in self._names}

    async def _run(self, call: Mapping[str, Any]) -> tuple[str, bool]:
        """The result of one call as text, and whether it is an error."""
        methods = self._methods()
        if call["name"] not in methods:
            return f"error: there is no tool {call['name']!r}; there is {', '.join(methods)}", True
        try:
            method = methods[call["name"]]
            result = await self._call(method, read_arguments(method, call["arguments"]))
        except ToolFailure:
            raise
        except TimeoutError:
            return f"error: no result within {self.call_timeout_s:g} s", True
        except Exception as error:  # noqa: BLE001  boundary: model text reached a tool
            return f"error: {type(error).__name__}: {error}"[: self.max_result_chars], True
        return self._as_text(result), False

    async def _call(self, method: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(method):
            async with asyncio.timeout(self.call_timeout_s):
                return await method(**arguments)
        return await in_thread(lambda: method(**arguments), self.call_timeout_s, WORLDS)

    def _as_text(self, result: Any) -> str:
        text = result if isinstance(result, str) else json.dumps(result, default=str)
        if len(text) <= self.max_result_chars:
            return text
        half = self.max_result_chars // 2
        return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _counted(
    calls: int = 0, malformed: int = 0, errors: int = 0, seconds: float = 0.0
) -> dict[str, float]:
    """A step's numbers. A step without calls has zeros, or means would leave its episode out."""
    return {
        "tool_calls": calls,
        "malformed_calls": malformed,
        "tool_errors": errors,
        "tool_s": seconds,
    }


def tool_names(owner: type) -> list[str]:
    """Public methods that are tools, in the order they were written, a base class's first."""
    found: dict[str, None] = {}
    for cls in reversed(owner.__mro__):
        if cls in (object, ToolEnv):
            continue
        public = (name for name in vars(cls) if not name.startswith("_") and name not in _OURS)
        found |= {name: None for name in public if inspect.isfunction(vars(cls)[name])}
    return list(found)


def tool_spec(function: Callable[..., Any]) -> ToolSpec:
    """A function as a tool. Raises UsageError for a parameter without a type hint."""
    name = function.__name__
    schema = _model(function).model_json_schema()
    schema.pop("title", None)
    for one in schema.get("properties", {}).values():
        one.pop("title", None)
    return ToolSpec(name, inspect.getdoc(function) or "", schema)


def read_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the function's types. Raises ValueError that a model can read."""
    from pydantic import ValidationError

    try:
        model = _model(function).model_validate(dict(given))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(faults)) from None
    return {name: getattr(model, name) for name in type(model).model_fields}


_MODELS: dict[Callable[..., Any], Any] = {}


def _model(function: Callable[..., Any]) -> Any:
    """The parameters as a pydantic model, made once; a method's is its function's."""
    function = getattr(function, "__func__", function)
    if function not in _MODELS:
        _MODELS[function] = _make_model(function)
    return _MODELS[function]


def _make_model(function: Callable[..., Any]) -> Any:
    from pydantic import ConfigDict, Field, create_model
    from pydantic.errors import PydanticUserError

    where = f"tool {function.__qualname__}"
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UsageError(f"{where}: {error}; write its type hints with names that exist") from None
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(f"{where}: *{parameter.name} can't be described to a model")
        if parameter.name not in hints:
            raise UsageError(
                f"{where}: parameter {parameter.name!r} has no type hint, so no schema can be made"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        described = Field(default, description=_meaning(hints[parameter.name]))
        fields[parameter.name] = (hints[parameter.name], described)
    try:
        return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticUserError as error:
        raise UsageError(f"{where}: {error.message}") from None


def _meaning(hint: Any) -> str | None:
    """The text in ``Annotated[int, "text"]``."""
    if get_origin(hint) is not Annotated:
        return None
    return next((one for one in get_args(hint)[1:] if isinstance(one, str)), None)


def _tool_message(name: str, content: str, call_id: str | None = None) -> dict[str, Any]:
    message = {"role": "tool", "name": name, "content": content}
    return message | ({"tool_call_id": call_id} if call_id else {})
