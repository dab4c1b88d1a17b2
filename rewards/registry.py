"""Decides how a reward is named and found, and which columns a reward function asks for.

A reward is a plain function, sync or async, of whatever it wants to know::

    @rewards.register("short_and_right")
    def short_and_right(completion, answer, **columns) -> float:
        return float(answer in completion and len(completion) < 100)

It receives by name only what its signature takes: ``prompt`` (text of the last user message),
``completion`` (text the model wrote last), ``answer``, ``messages`` (the whole conversation), and
any column of the task; ``**columns`` takes the columns not named. What it may return is said in
``rewards.calling``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rewards.errors import UsageError, did_you_mean
from rewards.score import Score

Reward = Callable[..., "float | bool | Score | Awaitable[float | bool | Score]"]
F = TypeVar("F", bound=Reward)

GIVEN = frozenset({"prompt", "completion", "messages"})  # known of every sample, whatever the data

_REWARDS: dict[str, Reward] = {}


def register(name: str) -> Callable[[F], F]:
    """Decorator: make a reward known under ``name``; the function itself is returned unchanged.

    Registering the same function twice is fine (a notebook cell run again: same module and
    qualified name). Raises UsageError for a name that another function holds.
    """
    if not name or not isinstance(name, str):
        raise UsageError(f"a reward needs a name, got {name!r}: @rewards.register('my_reward')")

    def keep(reward: F) -> F:
        required_columns(reward)  # a signature that cannot be called by name fails here
        held = _REWARDS.get(name)
        if held is not None and _identity(held) != _identity(reward):
            raise UsageError(f"reward {name!r} is already registered, by {_identity(held)}")
        _REWARDS[name] = reward
        return reward

    return keep


def load(name: str) -> Reward:
    """The reward registered as ``name``. Raises UsageError naming the nearest ones."""
    if name not in _REWARDS:
        raise UsageError(f"unknown reward {name!r}.{did_you_mean(name, _REWARDS)}")
    return _REWARDS[name]


def names() -> list[str]:
    """All registered rewards, sorted."""
    return sorted(_REWARDS)


def name_of(reward: Reward) -> str:
    """The name a reward is registered under, else its own."""
    for name, held in _REWARDS.items():
        if held is reward:
            return name
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))


def required_columns(reward: Reward) -> frozenset[str]:
    """The task's fields that ``reward`` cannot be called without: columns, and ``answer``.

    ``prompt``, ``completion`` and ``messages`` are always there and never in the set. Raises
    UsageError for something that is not a function, or whose parameters have no usable names.
    """
    declared = getattr(reward, "required_columns", None)
    if isinstance(declared, frozenset):
        return declared
    named, _ = parameters(reward)
    return frozenset(name for name, needed in named.items() if needed) - GIVEN


def parameters(reward: Reward) -> tuple[dict[str, bool], bool]:
    """Named parameters -> whether each must be given; and whether ``**columns`` takes the rest."""
    if not callable(reward):
        raise UsageError(f"a reward is a function or a registered name, got {reward!r}")
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"reward {reward!r} has no readable signature: wrap it in a def"
        ) from error
    named, takes_rest = {}, False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UsageError(
                f"reward {name_of(reward)!r} takes {parameter.name!r} by position only; "
                "arguments are passed by name"
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_rest = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            named[parameter.name] = parameter.default is parameter.empty
    return named, takes_rest


def _identity(reward: Reward) -> str:
    kind = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '')}"
