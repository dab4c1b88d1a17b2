"""``report.html``: what became of the rows, and rows to look at, in one file without scripts.

For each reason there are examples, so that a reader sees what was dropped and whether that was
right. It needs no network and reads on a phone. All text of models is escaped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

SHOWN = {"": 30}  # rows of each reason; "" is kept
SHOWN_DROPPED = 8
_MAX_CHARS = 4000
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem }
td:last-child { text-align: right } tr { border-bottom: 1px solid #8884 }
details { border: 1px solid #8886; border-radius: .4rem; margin: .4rem 0; padding: .3rem .7rem }
summary { cursor: pointer; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: .3rem 0 }
.role { font-weight: 600; font-size: .85rem; opacity: .7 } .facts { font-size: .85rem; opacity: .8 }
"""
_CONTENT = ("messages", "prompt", "chosen", "rejected", "text", "answer")


class Examples:
    """The first rows of each reason."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)

    def see(self, row: Mapping[str, Any]) -> None:
        shown = self._rows[row["dropped"]]
        if len(shown) < SHOWN.get(row["dropped"], SHOWN_DROPPED):
            shown.append(row)

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        return self._rows.get("", [])

    def by_reason(self) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
        """The kept first."""
        return sorted(self._rows.items())


def report(job: Mapping[str, Any], summary: Mapping[str, Any], examples: Examples) -> str:
    """The page."""
    name = escape(str(job["generator"]))
    counts = {"kept": summary["kept"], **summary["dropped"]}
    diversity = dict(summary["diversity"])
    rates = diversity.pop("pass_rate")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>Data made by {name}</title><style>{_STYLE}</style>",
        f"<h1>Data made by {name}</h1>",
        f"<p>{summary['items']} items, {summary['items_failed']} of them failed.</p>",
        _table("What became of the rows", counts),
        _table("Items that failed", summary["failures"]),
        _table("Diversity of the kept", diversity),
        _table("Prompts by pass rate", rates),
        _table("Requests", {**summary["requests"], "cost": round(summary["cost"], 4)}),
    ]
    for reason, rows in examples.by_reason():
        parts.append(f"<h2>{escape(reason) or 'Kept'}</h2>")
        parts += [_row(row) for row in rows]
    asked = escape(json.dumps(job, indent=1, ensure_ascii=False, default=str))
    parts.append(f"<h2>Made with</h2><pre>{asked}</pre></html>")
    return "\n".join(parts) + "\n"


def _table(title: str, counts: Mapping[str, Any]) -> str:
    if not counts:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(_number(value))}</td></tr>"
        for name, value in counts.items()
    )
    return f"<h2>{title}</h2><table>{rows}</table>"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _row(row: Mapping[str, Any]) -> str:
    content = {name: row[name] for name in _CONTENT if row.get(name) is not None}
    facts = {
        name: value
        for name, value in row.items()
        if name not in _CONTENT and value not in (None, "", [], {})
    }
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    head = " ".join(_plain(next(iter(content.values()), "")).split())[:120]
    body = "".join(_column(name, value) for name, value in content.items())
    return (
        f"<details><summary>{escape(head) or '(empty)'}</summary>{body}"
        f"<p class=facts>{escape(told[:_MAX_CHARS])}</p></details>"
    )


def _column(name: str, value: Any) -> str:
    if not isinstance(value, list):
        return f"<div class=role>{name}</div><pre>{escape(str(value)[:_MAX_CHARS])}</pre>"
    return "".join(
        f"<div class=role>{name}: {escape(str(one.get('role')))}</div>"
        f"<pre>{escape(_plain([one])[:_MAX_CHARS])}</pre>"
        for one in value
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(
            str(m.get("content") or "") + (f"\n{m['tool_calls']}" if m.get("tool_calls") else "")
            for m in value
        )
    return str(value)
