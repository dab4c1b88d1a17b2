"""Decides how a reward is named, configured and found, and which columns it asks for.

A reward is a plain function, sync or async, of whatever it wants to know::

    @rewards.register("short_and_right")
    def short_and_right(completion, answer, limit=100, **columns) -> float:
        return float(answer in completion and len(completion) < limit)

It receives by name only what its signature takes: ``prompt`` (text of the last user message),
``completion`` (text the model wrote last), ``answer``, ``messages`` (the whole conversation), and
any column of the task; ``**columns`` takes the columns not named. What it may return is said in
``rewards.calling``.

A setting is an argument that is the same for every row: ``load("short_and_right", limit=50)``, or
as text, for a configuration file, ``load("short_and_right(limit=50)")``. A column never replaces
it, but fills an argument of its name that is not set, unless ``register`` was told that it is a
setting only. A reward that must be made
first (it opens a connection, wraps another reward) is registered as a factory: its arguments are
all settings, and what it returns is the reward.

The rewards that come with the package are imported when they are first loaded.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from rewards.errors import UsageError, did_you_mean
from rewards.score import Score

Reward = Callable[..., "float | bool | Score | Awaitable[float | bool | Score]"]
F = TypeVar("F", bound=Callable[..., Any])

GIVEN = frozenset({"prompt", "completion", "messages"})  # known of every sample, whatever the data

# Name -> the module that registers it. ``docs/rewards.md`` is the catalogue for people.
BUILT_IN = {
    "code": "rewards.code",
    "compressibility": "rewards.repetition",
    "cosine": "rewards.length",
    "exact": "rewards.matching",
    "format": "rewards.format",
    "fuzzy": "rewards.matching",
    "gsm8k": "rewards.math",
    "ifeval": "rewards.instructions",
    "instructions": "rewards.instructions",
    "judge": "rewards.judge",
    "json_schema": "rewards.json_schema",
    "language": "rewards.language",
    "math": "rewards.math",
    "overlong": "rewards.length",
    "process_reward_model": "rewards.model",
    "refusal": "rewards.refusal",
    "regex": "rewards.matching",
    "repetition": "rewards.repetition",
    "reward_model": "rewards.model",
    "tool_calls": "rewards.tool_calls",
}

_REWARDS: dict[str, Any] = {}
_FACTORIES: set[str] = set()


def register(
    name: str,
    *,
    batch: bool = False,
    factory: bool = False,
    settings: Iterable[str] = (),
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[[F], F]:
    """Decorator: make a reward known under ``name``; the function itself is returned unchanged.

    ``batch``: the function takes lists and returns a list; it becomes a ``rewards.Batched``, which
    can still be called like the function. ``factory``: it takes settings and returns a reward.
    ``settings``: arguments that no column may fill, only ``load``. ``check``: see ``check_row``.
    Registering the same function twice is fine (a notebook cell run again: same module and
    qualified name). Raises UsageError for a name that another function holds.
    """
    if not name or not isinstance(name, str) or "(" in name:
        raise UsageError(f"a reward needs a name, got {name!r}: @rewards.register('my_reward')")

    def keep(reward: F) -> F:
        named, _ = parameters(reward)  # a signature that cannot be called by name fails here
        for setting in settings:
            if named.get(setting, True):
                raise UsageError(f"reward {name!r}: setting {setting!r} needs a default value")
        kept: Any = reward
        if settings:
            _function_of(kept).settings = frozenset(settings)
        if check is not None:
            kept.check_row = check
        if batch:
            from rewards.batched import Batched  # which needs this module

            kept = Batched(kept)
        if taken := _taken_by(name, kept):
            raise UsageError(f"reward {name!r} is already registered, by {taken}")
        _REWARDS[name] = kept
        if factory:
            _FACTORIES.add(name)
        return cast(F, kept)

    return keep


def load(name: str, **settings: Any) -> Reward:
    """The reward called ``name``, with ``settings`` fixed. Raises UsageError for what cannot be.

    ``name`` may carry settings that are plain values: ``"overlong(max_tokens=2048, buffer=512)"``.
    An unknown name or setting is told with the nearest known one.
    """
    known = {*_REWARDS, *BUILT_IN}
    if name not in known and "(" in name:
        name, written = _parsed(name)
        settings = {**written, **settings}
    if name not in known:
        raise UsageError(f"unknown reward {name!r}.{did_you_mean(name, known)}")
    if name not in _REWARDS:
        importlib.import_module(BUILT_IN[name])
    reward = _REWARDS[name]
    if name in _FACTORIES:
        return _made(name, reward, settings)
    return _configured(name, reward, settings) if settings else cast(Reward, reward)


def names() -> list[str]:
    """All rewards that ``load`` knows, sorted."""
    return sorted({*_REWARDS, *BUILT_IN})


def name_of(reward: Reward) -> str:
    """The name a reward is registered under, else its own.

    With settings it is the text that ``load`` reads, as in ``overlong(max_tokens=2048)``.
    """
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


def check_row(reward: Reward, fields: Mapping[str, Any]) -> None:
    """Raises UsageError when ``reward`` could never judge a row rightly: an empty gold, a bad
    schema, an unknown instruction.

    A reward that can tell is registered with ``check=`` or has an attribute ``check_row``: a
    function of the row's fields (``answer``, the columns, the reward's settings; any of them may be
    absent, and is then not its business) that raises ValueError.
    """
    check = getattr(reward, "check_row", None)
    if check is None:
        return
    try:
        check(fields)
    except UsageError:  # of a part of a combination, which has said its name
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"reward {name_of(reward)!r}: {error}") from error


def parameters(reward: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Named parameters -> whether each must be given; and whether ``**columns`` takes the rest."""
    try:
        if (known := _read.get(reward)) is not None:
            return known
        found = _read[reward] = _parameters(reward)  # at each sample it would take 60 us
        return found
    except TypeError:  # it has no hash, or takes no weak reference
        return _parameters(reward)


_Parameters = tuple[dict[str, bool], bool]
_read: WeakKeyDictionary[Callable[..., Any], _Parameters] = WeakKeyDictionary()


def _parameters(reward: Callable[..., Any]) -> _Parameters:
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


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """``name(setting=value, ...)`` with literal values; nothing is evaluated."""
    name, _, rest = text.partition("(")
    wrong = f"cannot read {text!r}: write it as name(setting=value), with plain values"
    try:
        tree = ast.parse(f"f({rest}".strip(), mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
            raise UsageError(wrong)
        settings = {one.arg or "**": ast.literal_eval(one.value) for one in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise UsageError(wrong) from error
    return name.strip(), settings


def _configured(name: str, reward: Any, settings: dict[str, Any]) -> Reward:
    """A plain or batch reward with some of its arguments fixed."""
    function = _function_of(reward)
    named, takes_rest = parameters(function)
    for setting in settings:
        if setting in GIVEN or not (setting in named or takes_rest):
            raise UsageError(
                f"reward {name!r} has no setting {setting!r}."
                f"{did_you_mean(setting, set(named) - GIVEN)}"
            )
    made: Any = functools.partial(function, **settings)
    made.settings = getattr(function, "settings", frozenset())
    if function is not reward:
        made = reward.around(made)
    made.name = _with_settings(name, settings)
    if (check := getattr(reward, "check_row", None)) is not None:
        made.check_row = lambda fields: check({**fields, **settings})
        check_row(made, {})
    return cast(Reward, made)


def _made(name: str, factory: Callable[..., Any], settings: dict[str, Any]) -> Reward:
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "none"
        raise UsageError(f"reward {name!r}: {error}. Settings: {accepted}.") from error
    try:
        made: Any = factory(**settings)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"reward {name!r}: {error}") from error
    required_columns(made)
    if not hasattr(made, "name"):
        made.name = _with_settings(name, settings)
    return cast(Reward, made)


def _with_settings(name: str, settings: Mapping[str, Any]) -> str:
    written = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
    return f"{name}({written})" if written else name


def _taken_by(name: str, reward: Any) -> str:
    """The other function that holds a name, or the module of ours it is kept for; else empty."""
    mine = _identity(reward)
    if name in _REWARDS:
        held = _identity(_REWARDS[name])
        return "" if held == mine else held
    home = BUILT_IN.get(name, "")
    return "" if mine.startswith(f"{home}.") else home


def _function_of(reward: Any) -> Any:
    """The function inside a batch reward, else the reward itself."""
    return reward.function if hasattr(reward, "around") else reward


def _identity(reward: Any) -> str:
    reward = _function_of(reward)
    kind = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '')}"
