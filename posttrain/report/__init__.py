"""One HTML file per run, made from the run directory alone; opens offline.

    history.py    what happened: records of metrics.jsonl, put in order
    charts.py     which curves are drawn, from which fields
    rollouts.py   the sample of rollouts that can be browsed, with token texts
    alarms.py     what to warn of: a reward that rises while the held-out result falls
    headline.py   the numbers at the top, and the state of the run
    page.py       all of it as one page
    assets/       its template, style and scripts

The page holds plotly.js and the data gzipped (2 MB instead of 5), and unpacks them in the browser.
Text of models and environments reaches the page only inside that packed data or escaped, and is
shown as text, never as HTML.
"""

from __future__ import annotations

from pathlib import Path


def write_report(run: Path | str, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return its path.

    ``out`` defaults to ``report.html`` in the run. Raises UsageError when ``run`` is not a run.
    """
    from posttrain.report.page import render  # plotly and pyarrow only when asked for

    page = render(Path(run))
    path = out or Path(run) / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path
