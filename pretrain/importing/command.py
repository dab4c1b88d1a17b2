"""``pretrain import``: open weights to an ordinary folder, with a report of what was checked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """``import``, on the parser of the command line."""
    parser = commands.add_parser("import", help="check open weights and write them as a base")
    parser.add_argument("source", help="a folder, a .gguf file, or a name on the hub (owner/name)")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--revision", help="on the hub: branch, tag or commit")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .bin weights, with weights_only=True"
    )
    parser.add_argument("--prompt", help="of the trial continuation")
    parser.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars, of no use to anybody here
    from pretrain.importing.importer import ImportSettings, import_checkpoint

    given = {"prompt": options.prompt} if options.prompt else {}
    settings = ImportSettings(
        revision=options.revision,
        dtype=options.dtype,
        allow_pickle=options.allow_pickle,
        **given,
    )
    report = import_checkpoint(options.source, options.out, settings)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    print(f"written: {options.out}", file=sys.stderr)
    return 0
