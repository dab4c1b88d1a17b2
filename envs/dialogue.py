"""A conversation with a user whom another model plays.

The simulator is behind any OpenAI-compatible chat route. It is told who the user is (``persona``)
and what they want (``goal``), and sees the conversation with the roles turned round: what the
policy wrote is said to it, what the user said is its own. It ends the conversation by writing the
stop phrase; then, or when the turns are used up, the reward judges the whole of it.

A simulator that does not answer in time, refuses, or writes nothing ends the episode without a
value: that is not the policy's doing. ``rewards.chat_server`` says what is tried again before that.

How it can be hacked: by talking the simulator into the stop phrase. The reward must judge what was
reached, not that the user stopped; ``user_stopped`` in the step record shows the share that did.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from envs.protocol import EndReason, Message, Step, Task, instant
from envs.single_turn import case_of, user
from rewards import Outcome, Reward, Score, UsageError, apply
from rewards.answer_text import after_thinking
from rewards.chat_server import ChatServer, NoReply, Refused, base_url, message_of

STOP = "[DONE]"
PROMPT = """You play a user who talks to an assistant. Never say that you are a model, and never \
help: you are the one who wants help.
Who you are: {persona}
What you want: {goal}

Write the user's next message alone, a sentence or two, and give away what you know only when it \
is asked for. When you have what you want, or it is clear that you cannot get it, write {stop}."""
OPENING = "The conversation begins. Write your first message."


@dataclass(slots=True)
class SimulatedUser:
    """A model that plays users. Raises UsageError for what cannot work."""

    url: str  # http://host:port/v1
    model: str
    stop: str = STOP
    timeout_s: float = 50.0  # one message, with all that is tried again
    attempts: int = 4
    api_key_env: str | None = None  # name of the variable that holds the key; never the key
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"max_tokens": 300})
    counts: Counter[str] = field(default_factory=Counter)  # requests, failures
    _servers: WeakKeyDictionary[asyncio.AbstractEventLoop, ChatServer] = field(
        default_factory=WeakKeyDictionary
    )

    def __post_init__(self) -> None:
        self.url = base_url(self.url, "dialogue")
        if not self.stop.strip():
            raise UsageError("dialogue: the stop phrase is a text that the user ends with")
        if self.timeout_s <= 0 or self.attempts < 1:
            raise UsageError("dialogue: timeout_s is above 0, and attempts at least 1")

    async def says(self, told: Sequence[Message], seed: int) -> str:
        """The user's next message. Raises NoReply, whose outcome is TIMEOUT or ERROR."""
        body = {"model": self.model, "messages": told, "seed": seed % (1 << 31), **self.sampling}
        trail: list[str] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                until = time.monotonic() + self.timeout_s
                raw = await self._server().complete(body, trail, until)
        except TimeoutError:
            self.counts["failures"] += 1
            why = f"no message within {self.timeout_s:g} s; {'; '.join(trail)}"
            raise NoReply(Outcome.TIMEOUT, why) from None
        except (Refused, NoReply) as error:
            self.counts["failures"] += 1
            outcome = getattr(error, "outcome", Outcome.ERROR)
            raise NoReply(outcome, str(error)) from None
        choice = message_of(raw) or {}
        said = (after_thinking(str(choice["message"].get("content") or "")) or "").strip()
        if not said or choice.get("finish_reason") == "length":
            self.counts["failures"] += 1
            raise NoReply(Outcome.ERROR, "its message was cut off" if said else "it said nothing")
        return said

    def _server(self) -> ChatServer:
        loop = asyncio.get_running_loop()
        if loop not in self._servers:
            self._servers[loop] = ChatServer(
                self.url, api_key_env=self.api_key_env, attempts=self.attempts, counts=self.counts
            )
        return self._servers[loop]


class Dialogue:
    """One conversation; the task's messages open it."""

    def __init__(self, simulator: SimulatedUser, reward: Reward, timeout_s: float = 60.0) -> None:
        self._simulator, self._reward, self._timeout_s = simulator, reward, timeout_s
        self._messages: tuple[Message, ...] = ()
        self._seed = 0

    @instant
    def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        self._task, self._seed = task, seed
        self._messages = task.messages
        return self._messages

    async def step(self, message: Message) -> Step:
        """The user's answer; the conversation is over when they stop."""
        self._messages += (message,)
        try:
            said = await self._simulator.says(self._told(), self._seed + len(self._messages))
        except NoReply as failed:
            detail = f"the simulated user at {self._simulator.url}: {failed}"
            return Step(score=Score(None, failed.outcome, detail=detail), done=True)
        if self._simulator.stop in said:
            return Step(score=await self._judged(), done=True, info={"user_stopped": 1})
        self._messages += (user(said),)
        return Step(messages=(user(said),))

    async def unfinished(self, reason: EndReason) -> Score:
        """Out of turns is an end like another; out of tokens or time the answer is missing."""
        if reason is EndReason.MAX_TURNS:
            return await self._judged()
        return Score(0.0, Outcome.WRONG, detail=f"the conversation was cut: {reason}")

    @instant
    def close(self) -> None:
        """Connections are the simulator's."""

    async def _judged(self) -> Score:
        case = case_of(self._task, self._messages)
        return await apply(self._reward, case, timeout_s=self._timeout_s)

    def _told(self) -> list[Message]:
        """The conversation as the simulator sees it, with the roles turned round."""
        columns = self._task.columns
        prompt = PROMPT.format(
            persona=columns.get("persona") or "anyone",
            goal=columns["goal"],
            stop=self._simulator.stop,
        )
        turned = {"user": "assistant", "assistant": "user"}
        talk = [
            {"role": turned[one["role"]], "content": str(one["content"])}
            for one in self._messages
            if one["role"] in turned
        ]
        return [{"role": "system", "content": prompt}, user(OPENING), *talk]


def check_goal(task: Task) -> None:
    goal = task.columns.get("goal")
    if not isinstance(goal, str) or not goal.strip():
        raise UsageError(f"dialogue: row {task.task_id!r} needs a goal, a text, got {goal!r:.100}")
