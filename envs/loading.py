"""Decides what a name given to ``envs.load`` stands for.

In this order: ``reasoning_gym:<dataset>``, ``verifiers:<name>``, ``openenv:<url>``; ``mix``,
several of these (``envs.mixed_env``); a registered environment; a data file or saved data set;
``owner/name``, a data set on the hub. Data needs a reward to be an environment.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from envs import files
from envs.data import Columns, DataTasks
from envs.mixed_env import Part, mixed
from envs.mixing import read_rates
from envs.protocol import Environment
from envs.single_turn import SingleTurn
from envs.splitting import PERCENT
from rewards import (
    Combined,
    Reward,
    UsageError,
    check_row,
    combine,
    did_you_mean,
    required_columns,
)
from rewards import load as load_reward

F = TypeVar("F", bound=Callable[..., Any])
PREFIX = "reasoning_gym:"
MIX = "mix"

# Prefix -> what loads the rest of the name, imported when it is asked for.
_FAMILIES = {
    PREFIX: "envs.reasoning:reasoning_gym",
    "verifiers:": "envs.adapters.verifiers:load_verifiers",
    "openenv:": "envs.adapters.openenv:load_openenv",
}

_ENVIRONMENTS: dict[str, Callable[..., Environment]] = {}


def register(name: str) -> Callable[[F], F]:
    """Decorator: ``envs.load(name, **args)`` will call the function or class.

    It must return an Environment, which has ``name``, ``tasks`` and ``make()``, such as
    ``envs.Episodes(name, tasks, make)``. Raises UsageError for a name that another function holds.
    """
    if not name or not isinstance(name, str) or ":" in name or "/" in name:
        raise UsageError(f"an environment needs a name without ':' and '/', got {name!r}")

    def keep(factory: F) -> F:
        held = _ENVIRONMENTS.get(name)
        if held is not None and _identity(held) != _identity(factory):
            raise UsageError(f"environment {name!r} is already registered, by {_identity(held)}")
        _ENVIRONMENTS[name] = factory
        return factory

    return keep


def names() -> list[str]:
    """All registered environments, sorted; ``reasoning_gym:<dataset>`` and data come on top."""
    return sorted(_ENVIRONMENTS)


def is_data(name: str) -> bool:
    """Whether ``load`` would take ``name`` for a data set, which needs ``reward=``."""
    if name.startswith(tuple(_FAMILIES)) or name in (*_ENVIRONMENTS, MIX):
        return False
    return files.looks_like_file(name) or name.count("/") == 1


def load(name: Any, **args: Any) -> Environment:
    """The environment that ``name`` stands for, made with ``args``.

    ``name`` is a string or path (see the module docstring), rows, or a ``datasets`` data set; for
    the last two and for files ``args`` are those of ``from_tasks``. Raises UsageError for anything
    that cannot be loaded as asked.
    """
    if not isinstance(name, str) and not hasattr(name, "__fspath__"):
        return from_tasks(name, **args)
    text = str(name)
    for prefix, family in _FAMILIES.items():
        if text.startswith(prefix):
            module, _, function = family.partition(":")
            loader = getattr(importlib.import_module(module), function)
            return _call(partial(loader, text.removeprefix(prefix)), text, args)
    if text == MIX:
        return _call(_mix, text, args)
    if text in _ENVIRONMENTS:
        return _call(_ENVIRONMENTS[text], text, args)
    if files.looks_like_file(text):
        return _from_source(text, args)
    if text.count("/") == 1 and "reward" in args:
        return _from_source(text, args)
    families = ["reasoning_gym:<dataset>", "verifiers:<name>", "openenv:<url>", MIX]
    hint = did_you_mean(text, [*_ENVIRONMENTS, *families])
    raise UsageError(
        f"unknown environment {text!r}.{hint} It may also be {', '.join(families)}, a data file "
        f"({', '.join(files.ENDINGS)}), or owner/name of a data set together with reward=."
    )


def from_tasks(
    rows: Iterable[Mapping[str, Any]],
    *,
    reward: str | Reward | Sequence[str | Reward] | Mapping[str | Reward, float] | None = None,
    name: str = "data",
    held_out: Iterable[Mapping[str, Any]] | None = None,
    system_prompt: str = "",
    **options: Any,
) -> Environment:
    """Rows and a reward as an environment of one turn.

    ``reward`` is a function, a registered name, or several as ``rewards.combine`` takes them.
    ``held_out`` are rows to evaluate on instead of a hash's choice of ``held_out_percent``. Further
    options: ``prompt_column``, ``messages_column``, ``answer_column``, ``seed``,
    ``held_out_percent``, and ``against``, evaluation sets by name (files or texts): rows that hold
    one of their items are left out, with a warning (``envs.contamination``).

    Raises UsageError for bad rows, columns or options.
    """
    if reward is None:
        raise UsageError(f"{name} is data: name the reward that judges answers with reward=...")
    judged_by = _reward(reward)
    columns = Columns(
        prompt=options.pop("prompt_column", "prompt"),
        messages=options.pop("messages_column", "messages"),
        answer=options.pop("answer_column", "answer"),
        required=tuple(sorted(required_columns(judged_by))),
        check=partial(check_row, judged_by),
    )
    seed, percent = options.pop("seed", 0), options.pop("held_out_percent", PERCENT)
    against = options.pop("against", None)
    if options:
        known = ["prompt_column", "messages_column", "answer_column", "seed", "held_out_percent"]
        known.append("against")
        odd = next(iter(options))
        raise UsageError(f"{name}: unknown argument {odd!r}.{did_you_mean(odd, known)}")
    tasks = DataTasks(
        _rows(rows) if against is None else _clean(_rows(rows), against, name),
        name=name,
        columns=columns,
        seed=seed,
        held_out_rows=None if held_out is None else _rows(held_out),
        held_out_percent=percent,
    )
    return SingleTurn(name, tasks, judged_by, system_prompt)


def _mix(of: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Environment:
    """Several environments as one: ``of`` are tables with ``env``, ``weight``, arguments of load.

    ``rates`` in a table is a file of ``{"task_id": [solved, judged]}``: what ``Curriculum`` leaves
    out.
    """
    parts = []
    for number, table in enumerate(of):
        args = dict(table)
        name, weight, rates = (
            args.pop("env", None),
            args.pop("weight", 1.0),
            args.pop("rates", None),
        )
        if not isinstance(name, str):
            raise UsageError(f'mix, part {number}: which environment? write env = "..."')
        parts.append(Part(load(name, **args), weight, None if rates is None else read_rates(rates)))
    return mixed(parts, seed=seed)


def _from_source(name: str, args: dict[str, Any]) -> Environment:
    """An environment over a file or hub data set; ``held_out`` may name a file, too."""
    split, subset = args.pop("split", "train"), args.pop("subset", None)
    aside_split, aside = args.pop("held_out_split", None), args.pop("held_out", None)
    is_file = files.looks_like_file(name)

    def rows_of(which: str) -> Sequence[Mapping[str, Any]]:
        if is_file:
            return files.read(name, split=which)
        return files.hub_dataset(name, subset=subset, split=which)

    if args.get("reward") is None:
        from_tasks((), name=name)  # says that a reward is missing before anything is read
    if isinstance(aside, str) or hasattr(aside, "__fspath__"):
        aside = files.read(str(aside))
    elif aside is None and aside_split is not None:
        aside = rows_of(aside_split)
    return from_tasks(rows_of(split), name=name, held_out=aside, **args)


def _clean(
    rows: Sequence[Mapping[str, Any]], against: Mapping[str, Any], name: str
) -> Sequence[Mapping[str, Any]]:
    from envs.contamination import read_index, row_text

    index = read_index(against)
    found = [index.find(row_text(row)) for row in rows]
    matches = [match for match in found if match is not None]
    if matches:
        reason = matches[0].reason
        warnings.warn(f"{name}: {len(matches)} rows left out, the first {reason}", stacklevel=3)
    return [row for row, match in zip(rows, found, strict=True) if match is None]


def _rows(rows: Any) -> Sequence[Mapping[str, Any]]:
    if hasattr(rows, "column_names"):  # a datasets data set, or a dict of its splits
        return files.of_split(rows, "train", "the data set")
    return rows if isinstance(rows, Sequence) else list(rows)


def _reward(reward: Any) -> Reward:
    if isinstance(reward, str):
        return load_reward(reward)
    if isinstance(reward, Combined) or callable(reward):
        return reward  # type: ignore[no-any-return]
    return combine(reward)


def _call(factory: Callable[..., Environment], name: str, args: dict[str, Any]) -> Environment:
    """Call a registered factory. Raises UsageError when the arguments or the result do not fit."""
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "none"
        raise UsageError(f"environment {name!r}: {error}. Accepted: {accepted}.") from error
    made = factory(**args)
    lacking = [part for part in ("name", "tasks", "make") if not hasattr(made, part)]
    if lacking:
        raise UsageError(
            f"environment {name!r} returned {type(made).__name__}, which lacks "
            f"{', '.join(lacking)}: return envs.Episodes(name, tasks, make)"
        )
    return made


def _identity(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__qualname__)}"
