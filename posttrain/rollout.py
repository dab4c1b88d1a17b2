"""Plays episodes: one environment against one Generate, a group of them per prompt.

Decides the seeds (a function of run seed, step, prompt and sample), the deadlines, and what a
failure means: an environment or reward that raises makes *that sample* unjudged, with its
traceback kept; an engine that fails is the caller's problem and propagates.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import envs
import rewards
from envs import Budget, EndReason, Env, Environment, Message, Step, Task, ToolSpec
from posttrain.chat import Chat
from posttrain.seeds import derive_seed
from posttrain.types import (
    GREEDY,
    Completion,
    Engine,
    FinishReason,
    Group,
    Request,
    Rollout,
    Sampling,
    Turn,
)
from posttrain.waits import ENVIRONMENTS, REWARDS, waiting
from rewards import Outcome, Score
from rewards.threads import WORLDS, in_thread


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """What bounds one episode."""

    max_turns: int
    window: int  # tokens of prompt and completion together
    timeout_s: float  # of one environment or reward call


@dataclass(frozen=True, slots=True)
class Player:
    """Everything an episode needs besides its task."""

    engine: Engine
    environment: Environment
    chat: Chat
    sampling: Sampling
    limits: EpisodeLimits
    reward: Callable[..., Any] | None = None  # replaces the environment's own score
    greedy: bool = False  # each group also has one greedy episode, the baseline

    def episodes_of(self, size: int) -> int:
        """Episodes that a group of ``size`` asks of the engine."""
        return size + self.greedy

    async def group(self, task: Task, *, seed: int, where: tuple[int, int], size: int) -> Group:
        """Play ``size`` episodes of one task; ``where`` is (step, prompt index).

        The caller has admitted ``episodes_of(size)`` episodes to the engine.
        """
        step, prompt = where
        episodes = [
            Episode(self, task, f"{step}-{prompt}-{i}", derive_seed(seed, step, prompt, i), i, step)
            for i in range(size)
        ]
        if self.greedy:
            best = replace(self, sampling=replace(self.sampling, temperature=0.0))
            episodes.append(Episode(best, task, f"{step}-{prompt}-{size}", 0, GREEDY, step))
        played = await _gather([episode.play() for episode in episodes])
        return Group(step, prompt, tuple(played[:size]), played[size] if self.greedy else None)


class _EnvFailure(Exception):
    """An environment call raised or overran; carries the score to record."""

    def __init__(self, reason: EndReason, score: Score) -> None:
        super().__init__(score.detail)
        self.reason, self.score = reason, score


@dataclass(slots=True)
class Episode:
    """One episode being played."""

    player: Player
    task: Task
    rollout_id: str
    seed: int
    sample_index: int
    step: int
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    score: Score | None = None
    scored_turn: int = 0  # the turn of the latest score
    turn_values: list[float] = field(default_factory=list)
    generation_s: float = 0.0
    reward_s: float = 0.0
    info: dict[str, float] = field(default_factory=dict)  # numbers of the steps, summed
    tools: Sequence[ToolSpec] = ()
    started: float = field(default_factory=time.perf_counter)

    async def play(self) -> Rollout:
        env: Env | None = None
        try:
            env = self._make()
            reason = await self._turns(env)
            await self._settle_unfinished(env, reason)
            score = await self._final_score()
        except _EnvFailure as failure:
            reason, score = failure.reason, failure.score
        finally:
            self.player.engine.leave()
            if env is not None:
                await self._close(env)
        return Rollout(
            rollout_id=self.rollout_id,
            task_id=self.task.task_id,
            sample_index=self.sample_index,
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            score=score,
            end_reason=reason,
            generation_s=self.generation_s,
            reward_s=self.reward_s,
            turn_values=tuple(self.turn_values),
            info=self.info,
        )

    def _make(self) -> Env:
        try:
            return self.player.environment.make()
        except Exception as error:  # as in ``_call``
            raise self._raised(f"{self.player.environment.name}.make") from error

    async def _turns(self, env: Env) -> EndReason:
        chat, limits = self.player.chat, self.player.limits
        # the environment's seed is the task's: the members of a group differ by what the model
        # writes, not by what the environment draws
        env_seed = derive_seed(0, self.task.task_id)
        started = await self._call(env.start, self.task, seed=env_seed)
        self.messages += self._checked(started, "start")
        if hasattr(env, "tools"):
            self.tools = await self._call(env.tools)
        prompt_ids = chat.prompt_ids(self.messages, self.tools)
        for turn in range(self._max_turns()):
            if len(prompt_ids) >= limits.window:
                return EndReason.LENGTH
            if (spent := self._spent()) is not None:
                return spent
            completion = await self._generate(prompt_ids, turn)
            self.turns.append(Turn(prompt_ids, completion))
            self.turn_values.append(0.0)
            reply = chat.reply(completion.token_ids, tools=bool(self.tools))
            self.messages.append(reply)
            step: Step = await self._call(env.step, reply)
            if not isinstance(step, Step):
                raise self._no_answer("step", step, "an envs.Step")
            self._note_score(turn, step.score)
            self._note_info(step.info)
            if step.done or completion.finish_reason is FinishReason.LENGTH:
                cut = completion.finish_reason is FinishReason.LENGTH
                return (self._spent() or EndReason.LENGTH) if cut else EndReason.DONE
            self.messages += self._checked(step.messages, "step")
            prompt_ids = chat.extend(prompt_ids, completion.token_ids, step.messages)
        return EndReason.MAX_TURNS

    def _max_turns(self) -> int:
        own = self._budget.turns
        return self.player.limits.max_turns if own is None else own

    @property
    def _budget(self) -> Budget:
        return getattr(self.player.environment, "budget", Budget())

    def _spent(self) -> EndReason | None:
        """The budget that is used up, if any."""
        budget = self._budget
        seconds = time.perf_counter() - self.started
        written = sum(len(turn.completion) for turn in self.turns)
        limits = (
            (budget.tokens, written, EndReason.TOKENS),
            (budget.tool_s, self.reward_s, EndReason.TOOL_TIME),
            (budget.total_s, seconds, EndReason.TOTAL_TIME),
        )
        over = (reason for most, used, reason in limits if most is not None and used >= most)
        return next(over, None)

    async def _settle_unfinished(self, env: Env, reason: EndReason) -> None:
        """Ask an environment that can say so what an episode without a score is worth."""
        judge = getattr(env, "unfinished", None)
        if self.score is None and judge is not None:
            self.score = await self._call(judge, reason)

    def _note_info(self, info: Mapping[str, Any]) -> None:
        for name, value in info.items():
            if isinstance(value, int | float):
                self.info[name] = self.info.get(name, 0.0) + value

    def _note_score(self, turn: int, score: Score | None) -> None:
        """The last score is the outcome; an earlier one becomes its turn's reward.

        Where a reward of the job's own gives the outcome, the environment's last score is its
        turn's too.
        """
        if score is None:
            return
        if self.score is not None and self.score.value is not None:
            self.turn_values[self.scored_turn] = self.score.value
        self.score, self.scored_turn = score, turn
        if self.player.reward is not None and score.value is not None:
            self.turn_values[turn] = score.value

    async def _generate(self, prompt_ids: Any, turn: int) -> Completion:
        started = time.perf_counter()
        sampling = self.player.sampling
        room = self.player.limits.window - len(prompt_ids)
        if self._budget.tokens is not None:
            room = min(room, self._budget.tokens - sum(len(t.completion) for t in self.turns))
        if room < sampling.max_tokens:
            sampling = replace(sampling, max_tokens=room)
        request = Request(
            request_id=f"{self.rollout_id}-{turn}",
            prompt_ids=prompt_ids,
            sampling=sampling,
            seed=derive_seed(self.seed, turn),
            step=self.step,
        )
        try:
            return await self.player.engine.generate(request)
        finally:
            self.generation_s += time.perf_counter() - started

    async def _final_score(self) -> Score:
        if self.player.reward is None:
            if self.score is None:
                detail = "the episode ended and the environment never gave a score"
                return Score(None, Outcome.ERROR, detail=detail)
            return self.score
        started = time.perf_counter()
        case = envs.case_of(self.task, self.messages)
        n_tokens = sum(len(turn.completion) for turn in self.turns)
        known = {"env_score": self.score, "n_tokens": n_tokens}
        case = replace(case, columns={**case.columns, **known})
        timeout_s = self.player.limits.timeout_s
        name = f"reward {rewards.name_of(self.player.reward)!r} of {self.rollout_id}"
        with waiting(name, deadline_s=timeout_s, owner=f"task {self.task.task_id}", many=REWARDS):
            score = await rewards.apply(self.player.reward, case, timeout_s=timeout_s)
        self.reward_s += time.perf_counter() - started
        return score

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One environment call under its deadline; plain methods that may wait run in a thread."""
        started = time.perf_counter()
        name = f"{self.player.environment.name}.{method.__name__}"
        try:
            with self._waiting_for(name):
                if getattr(method, "instant", False):
                    return method(*args, **kwargs)
                if not inspect.iscoroutinefunction(method):
                    # asyncio's own threads would keep the process from ending while one hangs
                    call = functools.partial(method, *args, **kwargs)
                    return await in_thread(call, self.player.limits.timeout_s, WORLDS)
                async with asyncio.timeout(self.player.limits.timeout_s):
                    return await method(*args, **kwargs)
        except TimeoutError as error:
            detail = f"{name} gave no answer within {self.player.limits.timeout_s:g} s"
            score = Score(None, Outcome.TIMEOUT, detail=detail)
            raise _EnvFailure(EndReason.ENV_TIMEOUT, score) from error
        except Exception as error:  # a user's code may raise anything: that sample is unjudged
            raise self._raised(name) from error
        finally:
            self.reward_s += time.perf_counter() - started

    def _raised(self, name: str) -> _EnvFailure:
        """For the exception that is being handled."""
        detail = f"{name} raised\n{traceback.format_exc(limit=-4)}"
        return _EnvFailure(EndReason.ENV_ERROR, Score(None, Outcome.ERROR, detail=detail))

    def _no_answer(self, call: str, answer: Any, wanted: str) -> _EnvFailure:
        detail = f"{self.player.environment.name}.{call} returned {answer!r:.200}, not {wanted}"
        return _EnvFailure(EndReason.ENV_ERROR, Score(None, Outcome.ERROR, detail=detail))

    def _checked(self, messages: Any, call: str) -> Sequence[Message]:
        """What an environment shows the model, if it is that. Raises _EnvFailure."""
        whole = isinstance(messages, Sequence) and all(
            isinstance(one, Mapping) and "role" in one and "content" in one for one in messages
        )
        if not whole:
            raise self._no_answer(call, messages, "messages with role and content")
        return messages  # type: ignore[no-any-return]

    def _waiting_for(self, call: str) -> waiting:
        owner, deadline_s = f"task {self.task.task_id}", self.player.limits.timeout_s
        name = f"{call} of {self.rollout_id}"
        return waiting(name, deadline_s=deadline_s, owner=owner, many=ENVIRONMENTS)

    async def _close(self, env: Env) -> None:
        try:
            await self._call(env.close)
        except _EnvFailure as failure:  # the score stands; a leak should not go unseen
            self.messages.append({"role": "system", "content": f"[close failed] {failure}"})


async def _gather(episodes: Sequence[Awaitable[Rollout]]) -> list[Rollout]:
    """Like asyncio.gather, but the first failure cancels the rest and propagates alone."""
    tasks = [asyncio.ensure_future(episode) for episode in episodes]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
