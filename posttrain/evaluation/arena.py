"""``posttrain arena``: a ranking of models from a file of votes, drawn and as data."""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.evaluation.ratings import Rating


def add_parser(commands: Any) -> None:
    """The command; nothing heavy is imported before it runs."""
    one = commands.add_parser("arena", help="rank models from votes on pairs of their answers")
    one.add_argument("votes", type=Path, help='JSON lines: {"a": model, "b": model, "winner": ...}')
    one.add_argument("--prior", type=float, default=0.0, help="imagined ties of each model")
    one.add_argument("--html", type=Path, help="write the ranking as a page, too")
    one.add_argument("--seed", type=int, default=0, help="of the intervals")
    one.set_defaults(run=_arena)


def _arena(options: argparse.Namespace) -> int:
    from posttrain.errors import UsageError
    from posttrain.evaluation.ratings import rank
    from posttrain.evaluation.votes import read_votes

    if options.prior < 0:
        raise UsageError(f"--prior is at least 0, got {options.prior}")
    votes = read_votes(options.votes)
    ranking = rank(votes, prior=options.prior, seed=options.seed)
    _table(ranking, len(votes))
    if options.html:
        options.html.write_text(page(ranking, len(votes)), encoding="utf-8")
    print(json.dumps({"votes": len(votes), "models": [asdict(one) for one in ranking]}))
    return 0


def _table(ranking: Sequence[Rating], votes: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Bradley-Terry ratings from {votes} votes")
    for heading in ("", "model", "rating", "95 %", "online Elo", "won", "lost", "tied"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for place, one in enumerate(ranking, 1):
        numbers = (f"{one.rating:.0f}", f"{one.low:.0f} to {one.high:.0f}", f"{one.elo:.0f}")
        record = (str(one.wins), str(one.losses), str(one.ties))
        table.add_row(str(place), escape(one.model), *numbers, *record)
    Console(file=sys.stderr).print(table)


_PAGE = """<!doctype html><meta charset="utf-8"><title>Arena</title>
<style>body{{font:15px system-ui;margin:2rem;max-width:60rem}}table{{border-collapse:collapse;\
width:100%}}td,th{{padding:.3rem .6rem;text-align:right}}td:first-child{{text-align:left}}\
tr+tr{{border-top:1px solid #8884}}svg{{width:20rem;height:1rem}}</style>
<h1>Bradley-Terry ratings</h1><p>{votes} votes. A tie is half a win; 400 points are odds of ten to
one; intervals of 95 % over a Bayesian bootstrap of the questions.</p>
<table><tr><th style="text-align:left">model<th>rating<th>95 %<th><th>online Elo<th>won<th>lost\
<th>tied</tr>
{rows}
</table>
"""


def page(ranking: Sequence[Rating], votes: int) -> str:
    """The ranking as one self-contained HTML page, without scripts."""
    low, high = min(one.low for one in ranking), max(one.high for one in ranking)
    scale = 100 / max(high - low, 1e-9)
    rows = []
    for one in ranking:
        start, middle, end = (scale * (x - low) for x in (one.low, one.rating, one.high))
        bar = (
            '<svg viewBox="-2 0 104 10" preserveAspectRatio="none">'
            f'<path d="M{start:.2f} 5H{end:.2f}" stroke="currentColor" stroke-width="1"/>'
            f'<path d="M{middle:.2f} 1v8" stroke="currentColor" stroke-width="1.5"/></svg>'
        )
        cells = [
            f"{one.rating:.0f}",
            f"{one.low:.0f} to {one.high:.0f}",
            bar,
            f"{one.elo:.0f}",
            *map(str, (one.wins, one.losses, one.ties)),
        ]
        rows.append(f"<tr><td>{html.escape(one.model)}<td>{'<td>'.join(cells)}</tr>")
    return _PAGE.format(votes=votes, rows="\n".join(rows))
