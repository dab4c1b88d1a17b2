"""What the simulator of ``data_gen.agentic`` is told, and how its JSON is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards import json_text

DONE = "[DONE]"
TASKS = """Here are the tools of an assistant:
{tools}

Write {n} different tasks that a user could bring to it and that need several calls of these tools.
Reply with a JSON list alone; each entry is an object with
"task": what the user wants to have in the end,
"user": who the user is and how they talk, in a sentence,
"opening": the user's first message,
"state": a JSON object, the world that the tools read and change,
"rubric": a list of 2 to 5 statements that are true of a good solution and can be checked."""
TOOL = """You play this tool:
{tool}

The state of the world: {state}
It is called with: {arguments}

Reply with a JSON object alone: "result", what the tool returns (an error where the call is wrong),
and "state", the whole state of the world after the call."""
USER = """You play a user of an assistant. You are: {user}
You want: {task}

The conversation so far:
{transcript}

Write your next message alone. If you have all you want, or it is clear that the assistant cannot
give it, write [DONE]."""
JUDGE = """A user wanted: {task}

What happened:
{transcript}

Criteria:
{rubric}

Reply with a JSON list alone: true or false for each criterion, in order."""
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)


def read_json(text: str) -> Any:
    """The JSON value that a reply is, fenced or not; None for anything else."""
    fenced = _FENCE.match(text.strip())
    try:
        return json_text.parse(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


def is_task(one: Any) -> bool:
    """Whether it has all that a task needs."""
    if not isinstance(one, dict) or not isinstance(one.get("state"), dict):
        return False
    texts = all(
        isinstance(one.get(name), str) and one[name] for name in ("task", "user", "opening")
    )
    return texts and isinstance(one.get("rubric"), list) and bool(one["rubric"])


def transcript(messages: Sequence[Mapping[str, Any]], *, tools: bool = True) -> str:
    """The conversation as lines; without ``tools``, what the user sees of it."""
    lines = []
    for message in messages:
        role, text = message["role"], str(message.get("content") or "")
        if role in ("user", "assistant") and text:
            lines.append(f"{role}: {text}")
        if tools and role == "tool":
            lines.append(f"tool result: {text}")
        for call in message.get("tool_calls", ()) if tools else ():
            lines.append(f"assistant calls: {json.dumps(call.get('function'))}")
    return "\n".join(lines)
