"""``pretrain data [CONFIG.toml] [key=value ...]``: raw pages to clean documents."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "data",
        help="raw pages (WARC, HTML, JSONL, Parquet) to clean documents",
        description="Read, extract, judge and deduplicate documents, in resumable steps.",
    )
    parser.add_argument("config", nargs="?", help="a TOML file, or the first key=value")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="input=crawl")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the job and say what it left."""
    from pretrain.data.settings import read_config

    settings = read_config(options.config, options.overrides)
    from pretrain.data.job import prepare_data

    result = prepare_data(**settings)
    if result.submitted:
        print("submitted; give the same command again when the tasks are done")
        return 0
    kept, total = result.counts[-1]["kept"], result.counts[0]["in"]
    print(f"{kept:,} of {total:,} documents in {result.documents}")
    for kind, number in result.counts[0]["reading"].items():
        named = ", ".join(result.counts[0]["files"].get(kind, [])[:3])
        print(f"  {kind}: {number:,}" + (f" ({named})" if named else ""))
    print(f"what was dropped and why: {result.funnel}")
    return 0
