"""``pretrain train``: the settings as a file, and the run."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a base model on tokenised shards",
        description="Train a base model; on several ranks: torchrun ... -m pretrain.cli train ...",
    )
    parser.add_argument("config", help="TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="section.key=value")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pretrain.training.job import train_model

    train_model(options.config, *options.overrides)
    return 0
