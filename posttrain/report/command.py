"""``posttrain report``, ``watch`` and ``inspect``: a run to look at, in a browser or a terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ORDERS = ("worst", "best")


def add_parsers(commands: Any) -> None:
    """Nothing heavy is imported before one runs."""
    report = commands.add_parser("report", help="write the HTML report of a run, or compare runs")
    report.add_argument("run_dir", type=Path)
    report.add_argument("others", type=Path, nargs="*", help="runs to compare it with")
    report.add_argument("--out", type=Path, help="where to write it (default: in the run)")
    report.set_defaults(run=_report)

    watch = commands.add_parser("watch", help="serve the report of a live run on loopback")
    watch.add_argument("run_dir", type=Path)
    watch.add_argument("--port", type=int, default=0, help="(default: a free one)")
    watch.set_defaults(run=_watch)

    inspect = commands.add_parser("inspect", help="print rollouts of a run")
    inspect.add_argument("run_dir", type=Path)
    inspect.add_argument("--step", type=int, help="of this step (default: the last one)")
    order = inspect.add_mutually_exclusive_group()
    for name in ORDERS:
        order.add_argument(f"--{name}", type=_count, metavar="N", help=f"the {name} N by reward")
    inspect.add_argument("--outcome", help="only correct, wrong, unparseable, timeout or error")
    inspect.add_argument("--task", help="only of the task with this id")
    inspect.set_defaults(run=_inspect)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _report(options: argparse.Namespace) -> int:
    from posttrain.report import record_alarms, write_report

    path = write_report(options.run_dir, options.out, options.others)
    for run in (options.run_dir, *options.others):
        for text in record_alarms(run):
            print(f"! {text}", file=sys.stderr)
    print(path)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from posttrain.report.live import serve

    return serve(options.run_dir, options.port)


def _inspect(options: argparse.Namespace) -> int:
    from posttrain.report.inspect import Wanted, inspect

    order = next((name for name in ORDERS if getattr(options, name)), "")
    count = getattr(options, order) if order else 5
    wanted = Wanted(options.step, order, count, options.outcome or "", options.task or "")
    return inspect(options.run_dir, wanted)
