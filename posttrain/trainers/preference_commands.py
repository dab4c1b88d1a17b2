"""``posttrain preference``, ``reward-model`` and ``process-reward-model``: trainers on judgements.

Each takes a TOML file, overrides, or both. Under a launcher every rank runs the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

JOBS = {  # command -> what it does, module, settings, function, record
    "preference": (
        "train on preferences: dpo and its family",
        *("preference", "PreferenceSettings", "train_preferences"),
    ),
    "reward-model": (
        "train a reward model on preferences",
        *("reward_model", "RewardModelSettings", "train_reward_model"),
    ),
    "process-reward-model": (
        "train a process reward model on step labels",
        *("process_reward_model", "ProcessRewardModelSettings", "train_process_reward_model"),
    ),
}


def add_parser(commands: Any) -> None:
    """The arguments of the three commands."""
    for name, (text, *_) in JOBS.items():
        parser = commands.add_parser(name, help=text)
        parser.add_argument("config", nargs="?", help="TOML file; may be left out")
        parser.add_argument("overrides", nargs="*", help="key=value, e.g. steps=50 lora.rank=16")
        parser.add_argument("--settings", action="store_true", help="list every setting, and stop")
        parser.set_defaults(run=partial(run, name))


def run(command: str, options: argparse.Namespace) -> int:
    """Prints the result's record in one line of JSON; exit codes as everywhere."""
    from posttrain.config import checked, read_tree, settings_table
    from posttrain.trainers.settings import main_rank

    kind, train, record = job(command)
    if options.settings:
        for name, default, description in settings_table(kind):
            print(f"{name:18} {default!r:>12}  {description}")
        return 0
    path, overrides = options.config, options.overrides
    if path is not None and "=" in path:
        path, overrides = None, [path, *overrides]
    given = checked(kind, read_tree(path, overrides)).model_dump(exclude_unset=True)
    out_dir = given.pop("out_dir", kind.model_fields["out_dir"].default)
    out = train(given.pop("model"), given.pop("data"), out_dir, seed=given.pop("seed", 0), **given)
    if main_rank():
        said = json.loads((out / record).read_text())
        held_out = {k: v for k, v in said["held_out"].items() if isinstance(v, int | float)}
        shown = {name: said[name] for name in ("steps", "rows", "seconds")}
        print(json.dumps({"model": str(out), **shown, "held_out": held_out}))
    return 0


def job(command: str) -> tuple[Any, Callable[..., Path], str]:
    """Settings of the whole job, the function that does it, and the name of its record."""
    from pydantic import Field, create_model

    _, home, settings, function = JOBS[command]
    module = import_module(f"posttrain.trainers.{home}")
    kind: Any = create_model(  # type: ignore[call-overload]
        "Job",
        __base__=getattr(module, settings),
        model=(str, Field(description="checkpoint folder or hub name")),
        data=(str, Field(description="file of rows; docs/preferences.md has their forms")),
        out_dir=(str, Field(default=f"runs/{command}", description="new folder for the result")),
        seed=(int, Field(default=0, description="decides order, held-out rows and new weights")),
    )
    return kind, getattr(module, function), module.RECORD
