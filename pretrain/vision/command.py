"""``pretrain vision``: the settings as a file, and the run."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(commands: Any) -> None:
    """``vision``, on the parser of the command line."""
    parser = commands.add_parser(
        "vision",
        help="train a model that sees, on rows with pictures",
        description="Train a model that sees: its projector, then the language model with it.",
    )
    parser.add_argument("config", help="TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="section.key=value")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars, of no use to anybody here
    from pretrain.vision.job import train_vision

    train_vision(options.config, *options.overrides)
    return 0
