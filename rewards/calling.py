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

Sync functions run in threads (``rewards.threads``), async ones on the event loop, which they must
not block: their deadline only holds where they await. A thread cannot be killed, so work that may
hang on model text belongs in a process that can be.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import traceback
from collections.abc import Mapping, Sequence
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


async def apply(reward: Reward | str, case: Case, *, timeout_s: float = 60.0) -> Score:
    """Judge one sample by one reward. Never raises for what the reward does; see the table above.

    ``reward`` is a function, a combination, or a registered name. Raises UsageError only for an
    unknown name. Cancelling the caller cancels the wait.
    """
    reward = load(reward) if isinstance(reward, str) else reward
    judge_case = getattr(reward, "judge_case", None)
    if judge_case is not None:  # a combination, which judges its parts through this function
        combined: Score = await judge_case(case, timeout_s)
        return combined
    try:
        returned = await _call(reward, arguments(reward, case), timeout_s)
        return as_score(returned)
    except TimeoutError as error:
        why = str(error) or "raised TimeoutError"
        return Score(None, Outcome.TIMEOUT, detail=f"reward {name_of(reward)!r}: {why}")
    except (Exception, SystemExit) as error:  # noqa: BLE001  boundary: user code
        tail = "".join(traceback.format_exception(error))[-DETAIL_CHARS:]
        return Score(None, Outcome.ERROR, detail=f"reward {name_of(reward)!r}: {tail}")


def arguments(reward: Reward, case: Case) -> dict[str, Any]:
    """What ``reward``'s signature takes of the case. Raises KeyError naming a missing column."""
    fields = case.fields()
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


async def _call(reward: Reward, kwargs: dict[str, Any], timeout_s: float) -> Any:
    """Run sync code in a thread, and await what it returns when that is awaitable."""
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


def _is_async(reward: Reward) -> bool:
    if inspect.iscoroutinefunction(reward):
        return True
    return inspect.iscoroutinefunction(getattr(type(reward), "__call__", None))  # noqa: B004
