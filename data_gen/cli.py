"""``data_gen <generator> config.toml [key=value ...]``: the Python functions for the shell.

A configuration is the keyword arguments of the generator's function, as TOML, with ``servers`` as a
list of tables. Exit codes: 0 done, 1 the run had to stop, 2 bad input, 130 interrupted (the same
command goes on).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_gen.errors import GenerationError, UsageError, did_you_mean

# command -> module, function, what it makes
GENERATORS = {
    "rejection": ("data_gen.rejection", "rejection_sample", "SFT data: K samples, the good kept"),
    "self-instruct": ("data_gen.instructions", "self_instruct", "SFT data: tasks from seed tasks"),
    "preferences": ("data_gen.preferences", "preferences", "pairs: better and worse answers"),
    "constitutional": ("data_gen.constitutional", "constitutional", "pairs: revised over first"),
    "votes": ("data_gen.votes", "votes", "pairs: from people's votes"),
    "boundary": ("data_gen.boundary", "knowledge_boundary", "SFT data: refuse what is not known"),
    "identity": ("data_gen.identity", "identity", "SFT data: who the model is, from facts"),
    "agentic": ("data_gen.agentic", "agentic", "SFT data: trajectories with simulated tools"),
    "rephrase": ("data_gen.rephrase", "rephrase", "text: documents said anew for pretraining"),
    "evolve": ("data_gen.evolving", "evolve", "SFT data: instructions made harder and rarer"),
    "magpie": ("data_gen.magpie", "magpie", "SFT data: questions drawn from an empty user turn"),
    "questions": ("data_gen.documents", "questions", "SFT data: questions on documents"),
    "back-translate": ("data_gen.documents", "back_translate", "SFT data: documents as answers"),
    "personas": ("data_gen.personas", "personas", "SFT data: requests of the persons behind texts"),
    "templated": ("data_gen.templated", "templated", "SFT data: rows in many wordings"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        config = read_config(options.config, options.overrides)
        module, function, _ = GENERATORS[options.generator]
        data = call(getattr(importlib.import_module(module), function), config)
    except UsageError as error:
        print(f"data_gen: {error}", file=sys.stderr)
        return 2
    except (GenerationError, OSError) as error:
        print(f"data_gen: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data_gen: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"{len(data)} rows in {config['out']}")
    return 0


def read_config(path: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The TOML file with ``key=value`` overrides, a dot for a table's key. Raises UsageError."""
    if path is not None and "=" in path:
        return read_config(None, [path, *overrides])
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise UsageError(f"{override!r} is not of the form key=value")
        *tables, key = name.strip().split(".")
        table = tree
        for one in tables:
            table = table.setdefault(one, {})
            if not isinstance(table, dict):
                raise UsageError(f"{name}: {one} is no table")
        table[key] = _value(text)
    return tree


def call(function: Callable[..., Any], config: dict[str, Any]) -> Any:
    """Call a generator; ``env_args`` go to ``envs.load``. Raises UsageError for a missing one."""
    arguments = dict(config)
    if "env_args" in arguments:
        import envs

        arguments["env"] = envs.load(arguments.get("env", ""), **arguments.pop("env_args"))
    signature = inspect.signature(function).parameters.values()
    named = [one.name for one in signature if one.kind is not one.VAR_KEYWORD]
    needed = [one.name for one in signature if one.default is one.empty and one.name in named]
    lacking = [name for name in needed if name not in arguments]
    if lacking:
        near = did_you_mean(lacking[0], arguments)
        raise UsageError(f"the configuration lacks {', '.join(lacking)}.{near}")
    return function(**arguments)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data_gen", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="generator", required=True, metavar="generator")
    for name, (_, _, text) in GENERATORS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("config", nargs="?", help="TOML file")
        command.add_argument("overrides", nargs="*", help="key=value, e.g. n_tasks=100")
    return parser


if __name__ == "__main__":
    sys.exit(main())
