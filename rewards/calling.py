"""Decides what happens when one reward meets one sample: the deadline, and how its answer is read.

=====================================  ===========================================================
the reward                             becomes
=====================================  ===========================================================
returns True, or a number >= 1         that value, CORRECT
returns False, or a number < 1         that value, WRONG
returns a Score                        as it is
raises                                 None, ERROR, with the end of the traceback
raises TimeoutError, or is too slow    None, TIMEOUT
returns NaN, infinity, anything else   None, ERROR
=====================================  ===========================================================

A batch reward is given many samples at once (``rewards.batched``), each read by the same table.

Sync functions run in threads (``rewards.threads``), async ones on the event loop, which they must
not block: their deadline only holds where they await. A thread cannot be killed, so work that may
hang on model text belongs in a process that can be.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.registry import Reward, load, name_of, parameters
from rewards.score import Outcome, Score
from rewards.threads import in_thread

DETAIL_CHARS = 2000  # the end of a traceback, which holds the error itself


@dataclass(frozen=True, slots=True)
class Case:
    """One sample to be judged: what was asked, what the model wrote, what the data set knows."""

    prompt: str
    completion: str
    answer: Any = None
    messages: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Everything a reward can ask for by name; a column never hides one of the four."""
        return {
            **self.columns,
            "prompt": self.prompt,
            "completion": self.completion,
            "answer": self.answer,
            "messages": self.messages,
        }


class CaseReward:
    """A reward that is an object and wants the whole case: a base class with one method to write.

    ``apply`` calls ``judge_case``; called like a function it does the same, without a batch.
    """

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """Judge one sample; what it raises is read as of any reward."""
        raise NotImplementedError

    async def __call__(
        self, prompt: str, completion: str, answer: object = None, **columns: Any
    ) -> Score:
        messages = columns.pop("messages", ())
        return await self.judge_case(Case(prompt, completion, answer, messages, columns), 60.0)


async def apply(reward: Reward | str, case: Case, *, timeout_s: float = 60.0) -> Score:
    """Judge one sample by one reward. Never raises for what the reward does; see the table above.

    ``reward`` is a function, a combination, or a registered name. Raises UsageError only for an
    unknown name. Cancelling the caller cancels the wait.
    """
    reward = load(reward) if isinstance(reward, str) else reward
    judge_case = getattr(reward, "judge_case", None)
    try:
        if judge_case is not None:  # it knows how: a combination, a batch reward
            return as_score(await judge_case(case, timeout_s))
        return as_score(await call(reward, arguments(reward, case), timeout_s))
    except (Exception, SystemExit) as error:  # noqa: BLE001  boundary: user code
        return unjudged(reward, error)


def unjudged(reward: Reward, error: BaseException) -> Score:
    """The score of a sample whose reward raised ``error``: TIMEOUT or ERROR, with the reason."""
    if isinstance(error, TimeoutError):
        why = str(error) or "raised TimeoutError"
        return Score(None, Outcome.TIMEOUT, detail=f"reward {name_of(reward)!r}: {why}")
    tail = "".join(traceback.format_exception(error))[-DETAIL_CHARS:]
    return Score(None, Outcome.ERROR, detail=f"reward {name_of(reward)!r}: {tail}")


def arguments(reward: Reward, case: Case) -> dict[str, Any]:
    """What ``reward``'s signature takes of the case. Raises KeyError naming a missing column.

    A column does not replace what a partial has fixed, nor what is a setting of the reward.
    """
    fixed = set(reward.keywords) if isinstance(reward, functools.partial) else set()
    fixed |= getattr(reward, "settings", frozenset())
    fields = {name: value for name, value in case.fields().items() if name not in fixed}
    named, takes_rest = parameters(reward)
    missing = [name for name, needed in named.items() if needed and name not in fields]
    if missing:
        have = ", ".join(sorted(fields))
        raise KeyError(f"asks for {', '.join(missing)}, which the task does not have ({have})")
    if takes_rest:
        return fields
    return {name: fields[name] for name in named if name in fields}


def as_score(returned: Any) -> Score:
    """Read what a reward returned. Raises TypeError or ValueError for what is no judgement."""
    if isinstance(returned, Score):
        return returned
    if getattr(returned, "shape", None) == () and hasattr(returned, "item"):
        returned = returned.item()  # numpy or torch scalar
    if not isinstance(returned, numbers.Real):
        hint = " (is a return missing?)" if returned is None else ""
        raise TypeError(f"returned {returned!r:.200}, not a float, bool or Score{hint}")
    value = float(returned)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, which is not a finite number")
    return Score(value, Outcome.CORRECT if value >= 1.0 else Outcome.WRONG)


async def call(reward: Callable[..., Any], kwargs: dict[str, Any], timeout_s: float) -> Any:
    """Run sync code in a thread, and await what it returns when that is awaitable.

    Raises what the function raises, and TimeoutError when it takes longer than ``timeout_s``.
    """
    try:
        async with asyncio.timeout(None) as deadline:
            if _is_async(reward):
                deadline.reschedule(asyncio.get_running_loop().time() + timeout_s)
                returned: Any = reward(**kwargs)
            else:
                returned = await in_thread(lambda: reward(**kwargs), timeout_s)
                deadline.reschedule(asyncio.get_running_loop().time() + timeout_s)
            return await returned if inspect.isawaitable(returned) else returned
    except TimeoutError:
        if deadline.expired():
            raise TimeoutError(f"no answer after {timeout_s:g} s") from None
        raise


def _is_async(reward: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(reward):
        return True
    return inspect.iscoroutinefunction(getattr(type(reward), "__call__", None))  # noqa: B004
