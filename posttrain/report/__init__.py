"""One HTML file per run, made from the run directory alone; opens offline.

    history.py    what happened: records of metrics.jsonl, put in order
    charts.py     which curves are drawn, from which fields
    rollouts.py   the sample of rollouts that can be browsed, with token texts
    alarms.py     what to warn of: a reward that rises while the held-out result falls
    hacking.py    the reward hacking watch: what the reward pays for, and where the policy goes
    answers.py    what it measures on each answer
    inspect.py    rollouts in the terminal
    live.py       the report of a live run, served on loopback
    command.py    posttrain report, watch, inspect
    timeline.py   what loop, engine and learner did, step by step
    compare.py    several runs beside each other
    headline.py   the numbers at the top, and the state of the run
    page.py       all of it as one page
    assets/       its template, style and scripts

The page holds plotly.js and the data gzipped (2 MB instead of 5), and unpacks them in the browser.
Text of models and environments reaches the page only inside that packed data or escaped, and is
shown as text, never as HTML.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UsageError

if TYPE_CHECKING:
    from posttrain.report.hacking import Alarm
    from posttrain.report.history import History
    from posttrain.storage.run_dir import RunDir


def write_report(run: Path | str, out: Path | None = None, others: Sequence[Path] = ()) -> Path:
    """Write the report of a run, finished or not, and return its path.

    ``others`` are runs to compare it with, on one page. ``out`` defaults to ``report.html`` in the
    run, ``comparison.html`` with others. Raises UsageError when one of them is not a run.
    """
    from posttrain.report.page import render  # plotly and pyarrow only when asked for

    page = render([Path(run), *others])
    path = out or Path(run) / ("comparison.html" if others else "report.html")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def new_alarms(run: RunDir) -> list[dict[str, Any]]:
    """What the watch warns of and metrics.jsonl does not say yet, as records for it."""
    from posttrain.report.hacking import watch
    from posttrain.report.history import read_history

    history = read_history(run.path)
    step = int(history.steps[-1]["step"]) if history.steps else 0
    return unsaid(history, watch(history).alarms, step)


def unsaid(history: History, alarms: Iterable[Alarm], step: int) -> list[dict[str, Any]]:
    """Records of the alarms that the history does not have yet."""
    said = {(r.get("alarm"), r.get("text")) for r in history.events}
    return [
        {"kind": "event", "step": step, "event": "alarm", "alarm": name, "text": text}
        for name, text in alarms
        if (name, text) not in said
    ]


def record_alarms(path: Path) -> list[str]:
    """The texts of the new alarms of a run that is over, now in its metrics.jsonl too.

    A live run records its own when it ends, and of a run that can't be written they are told alone.
    """
    from posttrain.storage.run_dir import RunDir

    run = RunDir.open(path)
    found = new_alarms(run)
    if found and not run.lock.held_elsewhere():
        with contextlib.suppress(OSError, UsageError), run:
            run.lock.take()
            for alarm in found:
                run.log(alarm)
    return [alarm["text"] for alarm in found]
