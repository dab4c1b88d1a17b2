"""Decides what the funnel page shows: where documents, and the words or tokens in them, were
lost: by stage, rule and language. Words where no tokenizer is chosen yet; tokens where the shards
are written.

One HTML file without anything to load, made from the ``counts.json`` of the chain and the stages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError

Counts = dict[str, Any]

_UNITS = {"words_kept": "words kept", "tokens_kept": "tokens kept"}

_STYLE = """
:root { --page: #f6f7f9; --card: #fff; --line: #e4e7ec; --text: #1c2430; --dim: #667085;
  --kept: #3b5bdb; --lost: #dde3ee; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #161b22; --line: #262d37;
  --text: #e3e8ef; --dim: #97a1b0; --kept: #7c9aff; --lost: #2a3342; } }
body { margin: 0 auto; max-width: 1100px; padding: 28px; background: var(--page);
  color: var(--text); font: 14px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 28px; } h2 { margin: 36px 0 12px; font-size: 18px; }
p, small { color: var(--dim); }
table { width: 100%; border-collapse: collapse; background: var(--card); }
td, th { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-weight: 400; }
th { color: var(--dim); } td:first-child, th:first-child, .left { text-align: left; }
.bar { display: flex; height: 14px; min-width: 200px; background: var(--lost); }
.bar i { background: var(--kept); }
blockquote { margin: 6px 0; padding: 4px 10px; border-left: 3px solid var(--line);
  text-align: left; overflow-wrap: anywhere; white-space: pre-line; font-size: 13px; }
summary { cursor: pointer; }
"""


def write_funnel(path: Path, counts: Sequence[Counts]) -> Path:
    """The page of these counts, the chain's first. Returns its path."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(funnel_page(counts), encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_counts(folder: Path) -> list[Counts]:
    """The counts of a job's folder, in order. Raises UsageError when it has none."""
    files = sorted(folder.glob("[0-9][0-9]_*/counts.json"))
    files = [file for file in files if not file.parent.name.endswith(".rejects")]
    if not files:
        raise UsageError(f"{folder} has no counts.json of a finished stage")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def funnel_page(counts: Sequence[Counts]) -> str:
    """The whole page as HTML."""
    stages = [stage for one in counts for stage in (one.get("steps") or [one])]
    first, last = counts[0], counts[-1]
    kept = _share(last["kept"], first["in"])
    body = [
        "<h1>From raw pages to documents</h1>",
        f"<p>{first['in']:,} documents read, {last['kept']:,} kept ({kept}), "
        f"{last.get('characters_kept', 0):,} characters{_amounts(last, ', ')}</p>",
        _section("Stages", _stages(stages, first["in"])),
        _section("Languages", _languages(stages)),
        _section("Reading", _reading(first)),
        _section("What was dropped", "".join(map(_reasons, stages))),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data funnel</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _stages(stages: Sequence[Counts], total: int) -> str:
    rows = [
        (
            escape(stage["stage"]),
            _bar(stage["kept"], total),
            f"{stage['in']:,}",
            f"{stage['kept']:,}",
            _share(stage["kept"], stage["in"]),
            f"{stage.get('characters_kept', 0):,}",
            _share(stage.get("characters_kept", 0), stage.get("characters_in", 0)),
            *(f"{stage[unit]:,}" if stage.get(unit) else "" for unit in _UNITS),
        )
        for stage in stages
    ]
    head = ("stage", "kept of all", "in", "kept", "", "characters kept", "", *_UNITS.values())
    return _table(head, rows)


def _languages(stages: Sequence[Counts]) -> str:
    """Kept of what came in, a column for each stage; the largest languages."""
    sizes: dict[str, int] = {}
    for stage in stages:
        for name, one in stage.get("by_language", {}).items():
            sizes[name] = max(sizes.get(name, 0), one.get("in", 0))
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:30]
    rows = [
        (escape(name), *(_language(stage.get("by_language", {}).get(name)) for stage in stages))
        for name in names
    ]
    return _table(("language", *(escape(stage["stage"]) for stage in stages)), rows)


def _language(counts: Counts | None) -> str:
    if not counts:
        return ""
    kept = counts.get("kept", 0)
    share = _share(kept, counts.get("in", 0))
    return f"{kept:,}<br><small>{share}{_amounts(counts, '<br>')}</small>"


def _amounts(counts: Counts, before: str) -> str:
    """Words and tokens, where they are known."""
    known = (
        f"{counts[unit]:,} {name.split()[0]}" for unit, name in _UNITS.items() if counts.get(unit)
    )
    return "".join(before + one for one in known)


def _reading(first: Counts) -> str:
    rows = [
        (
            escape(kind),
            f"{number:,}",
            f'<span class="left">{escape(", ".join(first.get("files", {}).get(kind, [])))}</span>',
        )
        for kind, number in first.get("reading", {}).items()
    ]
    return _table(("what was found", "times", "in"), rows) if rows else ""


def _reasons(stage: Counts) -> str:
    if not stage.get("dropped"):
        return ""
    parts = []
    for reason, number in sorted(stage["dropped"].items(), key=lambda item: -item[1]):
        examples = stage.get("examples", {}).get(reason, [])
        quotes = "".join(f"<blockquote>{escape(str(text))}</blockquote>" for text in examples)
        share = _share(number, stage["in"])
        words = stage.get("dropped_words", {}).get(reason)
        share += f" of what came in{f', {words:,} words' if words else ''}"
        parts.append(
            f"<details><summary>{escape(reason)}: {number:,} <small>{share}</small>"
            f"</summary>{quotes}</details>"
        )
    return f"<h3>{escape(stage['stage'])}</h3>{''.join(parts)}"


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _bar(part: int, whole: int) -> str:
    return f'<span class="bar"><i style="width:{100 * part / max(whole, 1):.2f}%"></i></span>'


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
