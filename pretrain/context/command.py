"""``pretrain extend``: a longer window, and what the model makes of it before and after."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.context.rope import METHODS
from pretrain.errors import UsageError

if TYPE_CHECKING:
    from pretrain.context.extend import Measured


def add_parser(commands: Any) -> None:
    """``extend``, on the parser of the command line."""
    parser = commands.add_parser("extend", help="a longer context; needles and perplexity")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="new folder; without it, only measure")
    parser.add_argument("--length", type=int, required=True, help="of the new window, in tokens")
    parser.add_argument("--method", choices=METHODS, default="yarn")
    parser.add_argument("--base", type=float, help="of abf (default: grows with the length)")
    parser.add_argument("--documents", type=Path, help=".txt (one) or .jsonl (field text each)")
    parser.add_argument("--samples", type=int, default=4, help="needles per depth; 0: no measuring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars, of no use to anybody here
    from pretrain.context.extend import extend

    if options.samples < 0:
        raise UsageError("--samples must not be negative")
    documents = _documents(options.documents)
    if not options.documents and options.samples:
        print("perplexity is not measured: --documents FILE gives it long texts")
    measured = {}
    if options.samples:
        measured["before"] = _measured("before", options.checkpoint, options, documents)
    if options.out:
        change = extend(
            options.checkpoint,
            options.out,
            options.length,
            method=options.method,
            base=options.base,
        )
        old, new = change["window"]
        print(f"{options.out}: {old:,} -> {new:,} tokens by {options.method}")
        print(f"rope_parameters {json.dumps(change['rope_parameters'][-1])}")
        if options.samples:
            measured["after"] = _measured("after", options.out, options, documents)
    if options.json:
        rows = {name: [dataclasses.asdict(one) for one in all_] for name, all_ in measured.items()}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _measured(
    name: str, checkpoint: Path, options: argparse.Namespace, documents: list[str]
) -> list[Measured]:
    from transformers import AutoConfig

    from pretrain.context.extend import measure
    from pretrain.context.rope import window

    if not (options.checkpoint / "config.json").is_file():
        raise UsageError(f"{options.checkpoint} has no config.json: it is no checkpoint folder")
    old = window(AutoConfig.from_pretrained(options.checkpoint))
    lengths = sorted({min(old, options.length), options.length})
    rows = measure(
        checkpoint, lengths, documents=documents, samples=options.samples, seed=options.seed
    )
    print("\n".join([name, *(row.line() for row in rows)]), flush=True)
    return rows


def _documents(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix != ".jsonl":
        return [path.read_text()]
    try:
        return [str(json.loads(line)["text"]) for line in path.read_text().splitlines() if line]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: every line must be an object with a text: {error}") from error
