"""What a person sees while a run goes on; always on stderr, so that stdout stays the script's.

On a terminal: a bar at the bottom and one table row per step above it. Elsewhere (a log file, CI):
one plain line per step. ``quiet=True``: nothing. Everything shown here is in metrics.jsonl too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

HEADER_EVERY = 20  # rows

Record = Mapping[str, Any]


class Column(NamedTuple):
    """One column of the step table; ``key`` names a field of the step record."""

    title: str
    key: str
    width: int
    form: Callable[[float], str]


COLUMNS = (
    Column("step", "step", 5, lambda x: f"{x:.0f}"),
    Column("reward", "reward_mean", 7, lambda x: f"{x:.3f}"),
    Column("correct", "accuracy", 8, lambda x: f"{100 * x:.1f} %"),
    Column("length", "completion_length_mean", 7, lambda x: f"{x:.1f}"),
    Column("entropy", "entropy", 8, lambda x: f"{x:.3f}"),
    Column("kl", "kl", 8, lambda x: f"{x:.4f}"),
    Column("gap", "logprob_gap", 8, lambda x: f"{x:.4f}"),
    Column("lag", "lag_mean", 4, lambda x: f"{x:.1f}"),
    Column("gen s", "time_generation_s", 6, lambda x: f"{x:.2f}"),
    Column("train s", "time_train_s", 8, lambda x: f"{x:.2f}"),
    Column("sync s", "time_sync_s", 7, lambda x: f"{x:.2f}"),
    Column("tok/s", "completion_tokens_per_s", 7, lambda x: f"{x:,.0f}"),
)
DROPPED_WHEN_NARROW = ("length", "kl", "lag", "entropy", "sync s", "train s", "gen s")


class Console:
    """Use as a context manager around the run; ``first_step`` is where a resume goes on.

    Raises nothing of its own: what can't be shown is left blank.
    """

    def __init__(
        self,
        total_steps: int,
        quiet: bool = False,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.first_step = first_step
        self._stream = stream or sys.stderr
        self._show: _Terminal | _Lines | None = None
        if not quiet:
            terminal = self._stream.isatty()
            self._show = _Terminal(self) if terminal else _Lines(self)

    def step(self, record: Record) -> None:
        """A step is done; ``record`` is its record in metrics.jsonl."""
        if self._show:
            self._show.step(record)

    def evaluation(self, record: Record) -> None:
        """An evaluation is done."""
        if self._show:
            self._show.line(evaluation_text(record), "bold")

    def benchmark(self, record: Record) -> None:
        """A benchmark was played."""
        if self._show:
            self._show.line(benchmark_text(record), "bold")

    def event(self, text: str) -> None:
        """Something happened that a person should know: a restart, a skipped step, a resume."""
        if self._show:
            self._show.line(f"! {text}", "yellow")

    def note(self, text: str) -> None:
        """What a person may want to know, and need not act on."""
        if self._show:
            self._show.line(text, "dim")

    def phase(self, name: str) -> None:
        """What is being waited for from now on, such as "starting vLLM server"."""
        if self._show:
            self._show.phase(name)

    def __enter__(self) -> Self:
        if self._show:
            self._show.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._show:
            self._show.stop()


class _Lines:
    """One line per thing, for logs. Phases only until the first step: they repeat after it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phases: set[str] | None = set()

    def start(self) -> None:
        return

    def stop(self) -> None:
        return

    def phase(self, name: str) -> None:
        if self._phases is not None and name not in self._phases:
            self._phases.add(name)
            self.line(f"{name} ...", "")

    def step(self, record: Record) -> None:
        self._phases = None
        cells = [f"step {record.get('step', '?')}/{self._console.total_steps}"]
        for column in COLUMNS[1:]:
            text = _cell(column, record)
            if text:
                cells.append(f"{column.title} {text}")
        self.line(" | ".join(cells), "")

    def line(self, text: str, style: str) -> None:
        del style
        print(text, file=self._console._stream, flush=True)


class _Terminal:
    """A live bar, table rows above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rich: RichConsole | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._rows = 0

    def start(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._rich = RichConsole(file=self._console._stream, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[phase]}"),
            console=self._rich,
            transient=True,
        )
        self._task = self._bar.add_task(
            "run",
            total=self._console.total_steps,
            completed=self._console.first_step,
            shown="",
            phase="",
        )
        self._bar.start()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def phase(self, name: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, phase=_escape(name))

    def step(self, record: Record) -> None:
        columns = fitting(self._rich.width if self._rich else 80)
        if self._rows % HEADER_EVERY == 0:
            self.line(" ".join(f"{c.title:>{c.width}}" for c in columns), "dim")
        self._rows += 1
        self.line(" ".join(f"{_cell(c, record):>{c.width}}" for c in columns), "")
        if self._bar is not None and self._task is not None:
            shown = " ".join(
                f"{title} {text}"
                for title, text in (
                    ("reward", _cell(COLUMNS[1], record)),
                    ("tok/s", _cell(COLUMNS[-1], record)),
                )
                if text
            )
            done = int(record.get("step", 0)) + 1
            self._bar.update(self._task, completed=done, shown=_escape(shown))

    def line(self, text: str, style: str) -> None:
        if self._rich is None:  # before start or after stop
            print(text, file=self._console._stream, flush=True)
            return
        self._rich.print(_escape(text), style=style or None, soft_wrap=True)


def fitting(width: int) -> list[Column]:
    """The columns that fit a terminal of ``width``, dropping the least telling ones first."""
    columns = list(COLUMNS)
    for title in DROPPED_WHEN_NARROW:
        if sum(column.width + 1 for column in columns) <= width:
            break
        columns = [column for column in columns if column.title != title]
    return columns


def evaluation_text(record: Record) -> str:
    """One line for an eval record: accuracy with its interval, reward, pass@k."""
    parts = [f"evaluation {record.get('phase', '')} (step {record.get('step', '?')}):"]
    if record.get("accuracy") is not None:
        parts.append(f"{_accuracy(record)},")
    if record.get("mean_reward") is not None:
        parts.append(f"mean reward {record['mean_reward']:.3f}")
    pass_at_k = record.get("pass_at_k") or {}
    parts += [f"pass@{k} {100 * value:.1f} %" for k, value in pass_at_k.items() if str(k) != "1"]
    return " ".join(parts)


def benchmark_text(record: Record) -> str:
    """One line for a benchmark record: accuracy with its interval, answers without the form."""
    start = f"benchmark {record.get('benchmark', '?')} (step {record.get('step', '?')}): "
    if record.get("accuracy") is None:
        return start + "no answer could be judged"
    failures = record.get("format_failures")
    form = f", {100 * failures:.1f} % format failures" if failures is not None else ""
    return start + _accuracy(record) + form


def _accuracy(record: Record) -> str:
    low, high = record.get("accuracy_low"), record.get("accuracy_high")
    interval = ""
    if low is not None and high is not None:
        interval = f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * record['accuracy']:.1f} % correct{interval} of {record.get('n_tasks', '?')}"


def _cell(column: Column, record: Record) -> str:
    value = record.get(column.key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return column.form(value)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
