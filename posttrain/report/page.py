"""Puts a report together: escaped HTML for what is read first, packed data for what is drawn.

Headline, time, events, settings and versions are in the HTML itself and need no script. Charts and
rollouts are drawn by the scripts in assets/ from one gzipped JSON document.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Container, Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from posttrain.report import compare, headline
from posttrain.report.charts import charts, marks, overlays, time_totals
from posttrain.report.hacking import Signal, Watch, watch
from posttrain.report.history import History, Record, leaves, plain, read_history, setting
from posttrain.report.rollouts import browsable
from posttrain.report.timeline import timeline
from posttrain.report.tokens import TokenTexts
from posttrain.storage.jsonl import finite

_MARKS = '<p class="note">Dotted lines: skipped steps and restarts of a rollout server.</p>'
MAX_EVENTS = 500  # rows of the events table: the first and the last half of them
_DEFAULTLESS = ("model", "env", "run_dir")


def render(runs: Sequence[Path]) -> str:
    """The whole page of a run, or of several compared. Raises UsageError for what is not a run."""
    histories = dict(zip(compare.names(runs), map(read_history, runs), strict=True))
    if len(histories) > 1:
        return _comparison(histories)
    ((name, history),) = histories.items()
    rollouts, problems = _browsable(history)
    watched = watch(history)
    problems += [alarm.text for alarm in watched.alarms]
    sections = charts(history)
    word, tone = headline.state(history)
    parts = {
        "title": escape(name),
        "state": f'<span class="state {tone}">{escape(word)}</span>',
        "facts": _facts(headline.facts(history)),
        "cards": _cards(headline.cards(history)),
        "problems": _problems(problems),
        "time": _time(time_totals(history), timeline(history)),
        "watch": _watch(watched),
        "rollouts": _rollouts(len(rollouts), history.run.rollouts.count()),
        "events": _events(history),
        "settings": _details(
            "Settings", "those that differ from their default stand out", _settings(history)
        ),
        "software": _details("Software and machine", "", _software(history.manifest)),
    }
    return _page(parts, {"sections": sections, "marks": marks(history), "rollouts": rollouts})


def _comparison(runs: dict[str, History]) -> str:
    """Numbers, curves and rollouts of several runs, and what else is different."""
    rollouts, problems, total = [], [], 0
    for name, history in runs.items():
        found, unread = _browsable(history, share=len(runs))
        rollouts += [rollout | {"run": name} for rollout in found]
        problems += [f"{name}: {text}" for text in unread]
        problems += [f"{name}: {alarm.text}" for alarm in watch(history).alarms]
        total += history.run.rollouts.count()
    other = compare.differences(runs)
    table = _table(("", *runs), compare.numbers(runs))
    differing = _table(("setting or version", *runs), other) if other else "<p>Nothing.</p>"
    parts = {
        "title": escape(" against ".join(runs)),
        "problems": _problems(problems),
        "time": f'<section class="wide">{table}</section>',
        "rollouts": _rollouts(len(rollouts), total),
        "events": f'<section class="wide"><h2>What differs</h2>{differing}</section>',
    }
    return _page(parts, {"sections": overlays(runs), "marks": [], "rollouts": rollouts})


def _page(parts: dict[str, str], data: dict[str, Any]) -> str:
    """``parts``: HTML by the template's names; what is not there stays empty."""
    names = ("state", "facts", "cards", "watch", "settings", "software")
    return _fill(
        _asset("page.html"),
        dict.fromkeys(names, "")
        | parts
        | {
            "sections": "".join(_section(section["title"]) for section in data["sections"]),
            "marks": _MARKS if data["marks"] else "",
            "style": _asset("report.css"),
            "charts_js": _asset("charts.js"),
            "browser_js": _asset("browser.js"),
            "start_js": _asset("start.js"),
            "plotly": _plotly() if data["sections"] else "",
            "data": _packed(json.dumps(finite(data), separators=(",", ":")).encode()),
        },
    )


def _browsable(history: History, share: int = 1) -> tuple[list[dict[str, Any]], list[str]]:
    """The rollouts of one of ``share`` runs on the page, and what can't be read of it."""
    texts = TokenTexts.find(history.run.path, str(setting(history.manifest, "model")))
    rollouts, problems = browsable(history, texts, share)
    if history.bad_lines:
        problems.append(f"{history.bad_lines} lines of metrics.jsonl can't be read")
    return rollouts, problems


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace each {{name}} once; what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Packed; it is most of what a page costs, and the same each time."""
    import plotly.offline

    return _packed(str(plotly.offline.get_plotlyjs()).encode())


def _packed(data: bytes) -> str:
    """gzip and base64, without a time stamp: the same run gives the same page."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<li><b>{escape(name)}</b>{escape(value)}</li>" for name, value in facts)


def _problems(texts: Iterable[str]) -> str:
    return "".join(f'<p class="problem">{escape(text)}</p>' for text in texts)


def _details(title: str, note: str, table: str) -> str:
    small = f" <small>{note}</small>" if note else ""
    return f"<details><summary>{title}{small}</summary>{table}</details>"


def _cards(cards: Iterable[headline.Card]) -> str:
    return f'<div class="cards">{"".join(_card(card) for card in cards)}</div>'


def _card(card: headline.Card) -> str:
    title, value, text = escape(card.title), escape(card.value), escape(card.text)
    return (
        f'<div class="card {card.tone}"><h3>{title}</h3><p>{value}</p><small>{text}</small></div>'
    )


def _time(totals: Sequence[tuple[str, float, str]], lanes: str) -> str:
    """One bar: the share of all steps' time by what it was spent on; under it the timeline."""
    whole = sum(seconds for _, seconds, _ in totals)
    if not whole:
        return ""
    bars, keys = [], []
    for name, seconds, colour in totals:
        label = f"{escape(name)} {seconds / whole:.0%}"
        width = f"width:{100 * seconds / whole:.3f}%"
        title = f"{label}, {headline.duration(seconds)}"
        bars.append(f'<i class="fill-{colour}" style="{width}" title="{title}"></i>')
        keys.append(f'<li><i class="fill-{colour}"></i>{label}</li>')
    shares = f'<div class="bar">{"".join(bars)}</div><ul class="keys">{"".join(keys)}</ul>'
    return f'<section class="time"><h2>Where the time went</h2>{shares}{lanes}</section>'


def _section(title: str) -> str:
    name = escape(title)
    return f'<section><h2>{name}</h2><div class="charts" data-section="{name}"></div></section>'


def _rollouts(n: int, total: int) -> str:
    if not n:
        return ""
    left = f"; {total - n:,} are left out" if total > n else ""
    note = f"a sample of {n:,} of {total:,}{left}" if left else f"all {n:,}"
    return f'<section id="rollouts"><h2>Rollouts <small>{note}</small></h2></section>'


def _watch(watched: Watch) -> str:
    """What the reward pays for and where the policy went, alarm or not."""
    if not watched.signals:
        return ""
    head = ("property of the answer", "correlation with the reward", "early", "late")
    rows = [_signal(signal) for signal in watched.signals]
    marked = {signal.name for signal in watched.signals if signal.alarm}
    note = f"{watched.n_answers:,} answers; correlations among answers to the same prompt"
    title = f"<h2>What the reward pays for <small>{note}</small></h2>"
    return f'<section class="signals">{title}{_table(head, rows, marked)}</section>'


def _signal(signal: Signal) -> tuple[str, str, str, str]:
    form = ".0f" if signal.name in ("length", "reasoning") else ".2f"
    pays = "too few answers" if signal.pays is None else f"{signal.pays:+.2f}"
    return signal.name, pays, format(signal.early, form), format(signal.late, form)


def _events(history: History) -> str:
    """Everything worth a line: restarts, skipped steps, and whatever the loop called an event."""
    rows = [(r, "skipped", str(r.get("reason", ""))) for r in history.skips]
    rows += [(r, "event", _event_text(r)) for r in history.events]
    rows += [(r, "restart", _sync_text(r)) for r in history.syncs if r.get("restarts")]
    rows.sort(key=lambda row: row[0].get("time") or 0)
    if not rows:
        return ""
    half = MAX_EVENTS // 2
    shown = rows if len(rows) <= MAX_EVENTS else rows[:half] + rows[-half:]
    cells = [(f"{r['step']:g}", kind, text) for r, kind, text in shown]
    note = "" if len(shown) == len(rows) else f" <small>{len(shown)} of {len(rows)}</small>"
    return f"<section><h2>Events{note}</h2>{_table(('step', 'what', 'said'), cells)}</section>"


def _event_text(record: Record) -> str:
    if record.get("text"):
        return str(record["text"])
    known = {key: value for key, value in record.items() if key not in ("kind", "step", "time")}
    name = str(known.pop("event", ""))
    return " ".join([name, *(f"{key}={plain(value)}" for key, value in known.items())]).strip()


def _sync_text(record: Record) -> str:
    return f"{headline.counted(record['restarts'], 'restart')} of a rollout server while syncing"


def _settings(history: History) -> str:
    """All of them; those that differ from their default stand out."""
    given = dict(leaves(history.manifest.get("config") or {}))
    defaults = _default_settings()
    changed = {n for n, v in given.items() if n in _DEFAULTLESS or defaults.get(n) != v}
    return _table(("setting", "value"), [(n, plain(v)) for n, v in given.items()], changed)


def _default_settings() -> dict[str, Any]:
    from posttrain.config import GrpoConfig

    return dict(leaves(GrpoConfig(model="", env="").model_dump(mode="json")))


def _software(manifest: Record) -> str:
    """Versions, commits, machine, command line."""
    commits = manifest.get("git") or {}
    rows = [("python", manifest.get("python"))]
    rows += list((manifest.get("versions") or {}).items())
    rows += [(f"commit ({name})", _commit(commit)) for name, commit in commits.items() if commit]
    rows += list((manifest.get("platform") or {}).items())
    rows += [(f"environment: {k}", v) for k, v in (manifest.get("environment") or {}).items()]
    rows.append(("command", " ".join(map(str, manifest.get("argv") or []))))
    return _table(("", ""), [(str(name), plain(value)) for name, value in rows])


def _commit(commit: Record) -> str:
    changed = " with uncommitted changes" if commit.get("changed") else ""
    return f"{str(commit.get('commit', ''))[:12]}{changed}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Container[str] = ()) -> str:
    """``marked``: first cells of the rows to set off."""
    lines = []
    for row in rows:
        mark = ' class="set"' if row[0] in marked else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"
