"""An OpenEnv server as an environment: ``envs.load("openenv:http://127.0.0.1:8000")``.

The server is spoken to over its websocket, one connection for an episode; the protocol is JSON
(``{"type": "reset" | "step" | "close", "data": ...}``), so the package that serves is not needed
here, only ``websockets``. Each wait has a deadline (``timeout_s``), and ``close`` ends the session
on every path: the server drops it with the connection, even where that was cut.

**Tasks** are seeds: what a task asks is only known after ``reset(seed=...)``, so a task's message
names its seed, and the first observation is what the model sees. ``system_prompt`` goes before it.

**Actions.** What the model writes goes into ``action_field``, which may be left out where the
server's schema has one text field; where it has more, the model must write the action as a JSON
object. An action that the server calls invalid is told to the model. **Observations** are shown as
the text in ``observation_field``, or the only text field there is, or JSON. Both may be functions.

**The score** is the sum of the steps' rewards. An episode that runs out of turns keeps what it has,
and counts as wrong. Left out: tools of an MCP server as tools of the model (they are JSON actions).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.generated import GeneratedTasks
from envs.protocol import EndReason, Message, Step, Task, instant
from envs.single_turn import Episodes, user
from rewards import Outcome, Score, UsageError
from rewards.calling import as_score

MAX_MESSAGE_BYTES = 100 * 2**20
_ABOUT = ("metadata", "done", "reward")  # fields of every action and observation

Act = Callable[[Message], Mapping[str, Any]]
Observe = Callable[[Mapping[str, Any]], str]


class InvalidAction(Exception):
    """The model wrote no action that the server takes; said in words it can read."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the server, and how messages and its JSON become one another."""

    url: str  # ws://host:port/ws
    act: Act
    observe: Observe
    system_prompt: str
    timeout_s: float


def load_openenv(
    url: str,
    *,
    action_field: str | Act = "",
    observation_field: str | Observe = "",
    system_prompt: str = "",
    timeout_s: float = 60.0,
    seed: int = 0,
) -> Episodes:
    """The environment that the server at ``url`` (http or https) serves.

    Raises UsageError when no OpenEnv server answers there.
    """
    try:
        import websockets  # noqa: F401
    except ImportError as error:
        raise UsageError("an OpenEnv server needs `websockets`: pip install websockets") from error
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"openenv:{url}: write the server's address as http://host:port")
    schema = _schema(base, timeout_s)
    act = action_field if callable(action_field) else _writer(schema["action"], action_field, url)
    observe = observation_field if callable(observation_field) else _reader(observation_field)
    address = f"ws{base.removeprefix('http')}/ws"
    link = Connection(address, act, observe, system_prompt, timeout_s)
    tasks = GeneratedTasks(_episode, seed=seed)
    return Episodes(f"openenv:{base}", tasks, lambda: OpenEnv(link))


class OpenEnv:
    """One session on the server."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._socket: Any = None
        self._total = 0.0

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        from websockets.asyncio.client import connect

        link = self._link
        local = any(host in link.url for host in ("//127.0.0.1", "//localhost", "//[::1]"))
        more: dict[str, Any] = {"proxy": None} if local else {}
        self._socket = await connect(
            link.url, open_timeout=link.timeout_s, max_size=MAX_MESSAGE_BYTES, **more
        )
        answer = await self._ask("reset", {"seed": task.columns.get("seed", seed)})
        system = ({"role": "system", "content": link.system_prompt},) if link.system_prompt else ()
        return (*system, user(link.observe(answer["observation"])))

    async def step(self, message: Message) -> Step:
        try:
            answer = await self._ask("step", dict(self._link.act(message)))
        except InvalidAction as error:
            return Step(messages=(user(f"error: {error}"),), info={"malformed_calls": 1})
        self._total += float(answer.get("reward") or 0.0)
        if answer.get("done"):
            return Step(score=as_score(self._total), done=True)
        return Step(messages=(user(self._link.observe(answer["observation"])),))

    @instant
    def unfinished(self, reason: EndReason) -> Score:
        return Score(self._total, Outcome.WRONG, detail=f"ended before the server did: {reason}")

    async def close(self) -> None:
        """End the session. The connection is dropped, whatever became of the farewell."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        try:
            await asyncio.wait_for(socket.send(json.dumps({"type": "close"})), self._link.timeout_s)
        except Exception:  # noqa: BLE001  shutdown: the server may be gone; the socket is closed below
            pass
        finally:
            await socket.close()

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """One request. Raises InvalidAction, RuntimeError for the server's errors, TimeoutError."""
        if self._socket is None:
            raise RuntimeError(f"{kind} was called before start or after close")
        async with asyncio.timeout(self._link.timeout_s):
            await self._socket.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(await self._socket.recv())
        found: dict[str, Any] = answer.get("data", {})
        if answer.get("type") != "error":
            return found
        if kind == "step" and found.get("code") == "VALIDATION_ERROR":
            raise InvalidAction(f"the action is not valid: {found.get('message')}")
        raise RuntimeError(f"the server said {found.get('code')}: {found.get('message')}")


def _episode(stream: str, position: int) -> Task:
    """Training and held-out episodes get different seeds, below 2**31."""
    import hashlib

    digest = hashlib.blake2b(f"{stream}:{position}".encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "big") >> 1
    return Task(f"{stream}:{position}", (user(f"Episode {seed}"),), columns={"seed": seed})


def _schema(base: str, timeout_s: float) -> dict[str, Any]:
    import httpx

    try:
        answer = httpx.get(f"{base}/schema", timeout=min(timeout_s, 10.0))
        answer.raise_for_status()
        schema: dict[str, Any] = answer.json()
        schema["action"]["properties"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"openenv:{base}: no OpenEnv server answers there: {error!r}") from error
    return schema


def _writer(schema: Mapping[str, Any], field: str, url: str) -> Act:
    """How a message becomes an action."""
    fields = {name: one for name, one in schema["properties"].items() if name not in _ABOUT}
    if field and field not in fields:
        raise UsageError(f"openenv:{url}: actions have no field {field!r}: {', '.join(fields)}")
    if not field and len(fields) == 1 and next(iter(fields.values())).get("type") == "string":
        field = next(iter(fields))
    if field:
        return lambda message: {field: str(message["content"]).strip()}

    def written(message: Message) -> Mapping[str, Any]:
        try:
            action = json.loads(str(message["content"]))
        except ValueError as error:
            raise InvalidAction(f"write one JSON object with {', '.join(fields)}") from error
        if not isinstance(action, dict):
            raise InvalidAction(f"write one JSON object with {', '.join(fields)}")
        return action

    return written


def _reader(field: str) -> Observe:
    """How an observation becomes text."""

    def text(observation: Mapping[str, Any]) -> str:
        if field:
            return str(observation[field])
        shown = {name: value for name, value in observation.items() if name not in _ABOUT}
        texts = [value for value in shown.values() if isinstance(value, str)]
        return texts[0] if len(texts) == 1 and len(shown) == 1 else json.dumps(shown)

    return text
