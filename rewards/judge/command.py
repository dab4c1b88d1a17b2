"""Decides the options of ``posttrain audit judge FILE`` and what it prints.

The measurements are one line of JSON on standard output; the table for people goes to the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewards.judge.judge import Judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, on the parser of the sub-command."""
    parser.add_argument("file", type=Path, help="JSON lines: prompt, chosen, rejected[, tie]")
    parser.add_argument("--limit", type=int, help="only the first pairs of the file")
    parser.add_argument("--repeats", type=int, default=1, help="ask anew for self-consistency")
    add_judge_options(parser)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which judge, and how it is asked."""
    parser.add_argument(
        "--url", required=True, help="OpenAI-compatible server, http://host:port/v1"
    )
    parser.add_argument("--model", required=True, help="the name the server knows the judge by")
    parser.add_argument("--rubric", type=Path, help="JSON or TOML file with the criteria")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the judge")
    parser.add_argument("--api-key-env", help="environment variable that holds the API key")
    parser.add_argument("--cache", type=Path, help="folder of raw replies: a second run is free")
    parser.add_argument("--concurrency", type=int, default=16, help="verdicts at once")
    parser.add_argument("--budget-tokens", type=int, help="stop asking when these are spent")


def load_judge(options: argparse.Namespace) -> Judge:
    """The judge that ``add_judge_options`` were given. Raises UsageError."""
    import rewards.judge as judges

    return judges.load(
        options.url,
        options.model,
        options.rubric or judges.DEFAULT_RUBRIC,
        api_key_env=options.api_key_env,
        cache=options.cache,
        concurrency=options.concurrency,
        budget_tokens=options.budget_tokens,
        sampling={"temperature": options.temperature},
    )


def run(options: argparse.Namespace) -> int:
    """Audit and print. Raises UsageError for bad input; 1 when no pair could be judged."""
    from rewards.judge.audit import audit, table
    from rewards.judge.pairs import read_pairs

    pairs = read_pairs(options.file, options.limit)
    result = audit(load_judge(options), pairs, repeats=options.repeats)
    print(table(result), file=sys.stderr)
    print(json.dumps(result))
    return 0 if result["unjudged"]["share"] < 1.0 else 1
