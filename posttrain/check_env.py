"""``posttrain check-env``: the self-checks of an environment, by name or from a file.

Exit code 0 when every check holds, 1 otherwise. The environment is whatever ``envs.load`` knows, or
``file.py:NAME``: an environment, or a function that makes one, for which the file is run.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError


def add_parser(commands: Any) -> None:
    """The command; nothing heavy is imported before it runs."""
    one = commands.add_parser("check-env", help="does an environment keep its promises?")
    one.add_argument("env", help="a name that envs.load knows, or file.py:NAME")
    one.add_argument("args", nargs="*", metavar="key=value", help="arguments of envs.load")
    one.add_argument("--tasks", type=int, default=50, help="training tasks, and held-out ones")
    one.add_argument("--timeout", type=float, default=60.0, help="seconds of one call")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--gold", metavar="NAME", help="in file.py: gold(task, messages) -> answer")
    one.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    import envs

    environment, names = _environment(options.env, _arguments(options.args))
    gold = None
    if options.gold is not None:
        gold = names.get(options.gold)
        if not callable(gold):
            raise UsageError(f"--gold {options.gold}: {options.env} has no such function")
    report = envs.check(
        environment, options.tasks, seed=options.seed, timeout_s=options.timeout, gold=gold
    )
    print(report, file=sys.stdout if report.ok else sys.stderr)
    return 0 if report.ok else 1


def _arguments(given: list[str]) -> dict[str, Any]:
    from posttrain.config import override_tree

    return override_tree(given)


def _environment(text: str, args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The environment, and what else its file defines."""
    import envs

    path, separator, name = text.rpartition(":")
    if not separator or not path.endswith(".py"):
        return envs.load(text, **args), {}
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    names = runpy.run_path(path)
    if name not in names:
        raise UsageError(f"{path} defines no {name!r}")
    found = names[name]
    if not hasattr(found, "tasks") and callable(found):
        found = found(**args)
    lacking = [part for part in ("name", "tasks", "make") if not hasattr(found, part)]
    if lacking:
        raise UsageError(f"{text} is no environment, it lacks {', '.join(lacking)}")
    return found, names
