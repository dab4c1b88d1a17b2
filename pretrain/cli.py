"""``pretrain <command>``: the Python API written down for the shell.

Exit codes: 0 done, 1 the work had to stop, 2 bad input (nothing was written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from pretrain.context.command import add_parser as add_extend
from pretrain.data.command import add_parser as add_data
from pretrain.data.score_command import add_parser as add_scores
from pretrain.data.shard_command import add_parser as add_shards
from pretrain.doctor import add_parser as add_doctor
from pretrain.errors import RunError, UsageError
from pretrain.importing.command import add_parser as add_import
from pretrain.models.command import add_parser as add_model
from pretrain.planning.command import add_parser as add_plan
from pretrain.tokenizer_command import add_parser as add_tokenizer
from pretrain.training.command import add_parser as add_train
from pretrain.vision.command import add_parser as add_vision


def main(arguments: list[str] | None = None) -> int:
    """Parse, then import what the command needs."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"pretrain: stopped. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"pretrain: interrupted. {interrupt}".rstrip(". "), file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pretrain", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_data(commands)
    add_scores(commands)
    add_shards(commands)
    add_tokenizer(commands)
    add_model(commands)
    add_import(commands)
    add_extend(commands)
    add_plan(commands)
    add_doctor(commands)
    add_train(commands)
    add_vision(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
