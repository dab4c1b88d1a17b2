"""Where the time went, step by step: three lanes over wall time, as an SVG in the page itself.

    loop      what the loop was doing, in the colours of the bar above
    engine    how busy it was: the stronger its colour, the busier
    learner   the same

Decides how fine: at most MOST columns; in a longer run neighbouring steps become one. What ran at
the same time is seen by reading the lanes from top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from posttrain.report.headline import duration
from posttrain.report.history import TIME_COLOURS, TIMES, History, Record, is_number, time_spent

MOST = 250
_WIDTH = 1000.0
_LANES = {"loop": 0, "engine": 26, "learner": 52}
_HEIGHT = 20
_COLOURS = {"engine": "blue", "learner": "violet"}


def timeline(history: History) -> str:
    """The lanes as HTML, empty where no step tells its time."""
    timed = [r for r in history.steps if is_number(r.get("time_total_s")) and r["time_total_s"] > 0]
    if not timed:
        return ""
    size = -(-len(timed) // MOST)
    columns = [timed[i : i + size] for i in range(0, len(timed), size)]
    whole = sum(record["time_total_s"] for record in timed)
    lanes = [name for name in _LANES if name == "loop" or _told(timed, name)]
    shapes = "".join(_shapes(columns, lanes, _WIDTH / whole))
    height = _LANES[lanes[-1]] + _HEIGHT
    names = "".join(f"<li>{_lane(timed, name)}</li>" for name in lanes)
    box = f'viewBox="0 0 {_WIDTH:g} {height}" preserveAspectRatio="none" style="height:{height}px"'
    return (
        f'<div class="timeline"><ul>{names}</ul>'
        f'<svg {box} role="img" aria-label="timeline">{shapes}</svg></div>'
        f'<p class="note">{len(timed):,} steps over {duration(whole)}, left to right; '
        "the stronger the colour, the busier.</p>"
    )


def _shapes(
    columns: Sequence[Sequence[Record]], lanes: Sequence[str], scale: float
) -> Iterator[str]:
    x = 0.0
    for records in columns:
        seconds = sum(record["time_total_s"] for record in records)
        yield from _loop(records, x, scale)
        for name in lanes[1:]:
            yield _busy(records, name, (x, seconds * scale))
        x += seconds * scale


def _loop(records: Sequence[Record], x: float, scale: float) -> Iterator[str]:
    """Its parts one after the other; within merged steps all of one kind together."""
    spent = [time_spent(record) for record in records]
    for (name, _), colour in zip((*TIMES, ("other", "")), TIME_COLOURS, strict=True):
        seconds = sum(one[name] for one in spent)
        if seconds > 0:
            title = f"{_steps(records)}: {name} {duration(seconds)}"
            yield _rect("loop", (x, seconds * scale), colour, 1.0, title)
            x += seconds * scale


def _busy(records: Sequence[Record], name: str, place: tuple[float, float]) -> str:
    share = _share(records, name)
    if share is None:
        return ""
    title = f"{_steps(records)}: {name} busy {share:.0%}"
    return _rect(name, place, _COLOURS[name], 0.06 + 0.94 * share, title)


def _share(records: Sequence[Record], name: str) -> float | None:
    """Busy share, weighted by the steps' time."""
    known = [r for r in records if is_number(r.get(f"{name}_idle_share"))]
    whole = sum(r["time_total_s"] for r in known)
    if not whole:
        return None
    busy = sum((1 - r[f"{name}_idle_share"]) * r["time_total_s"] for r in known) / whole
    return float(min(1.0, max(0.0, busy)))


def _told(records: Sequence[Record], name: str) -> bool:
    return _share(records, name) is not None


def _lane(records: Sequence[Record], name: str) -> str:
    share = None if name == "loop" else _share(records, name)
    return name if share is None else f"{name} <b>{share:.0%} busy</b>"


def _steps(records: Sequence[Record]) -> str:
    first, last = int(records[0]["step"]), int(records[-1]["step"])
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _rect(lane: str, place: tuple[float, float], colour: str, opacity: float, title: str) -> str:
    x, width = place
    style = f'style="fill:var(--{colour})" opacity="{opacity:.2f}"'
    return (
        f'<rect x="{x:.2f}" y="{_LANES[lane]}" width="{width:.2f}" height="{_HEIGHT}" '
        f"{style}><title>{escape(title)}</title></rect>"
    )
