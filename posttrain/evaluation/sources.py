"""Where a benchmark's rows come from: a file that is named, a data folder, or a hub.

In this order: ``NAME=PATH`` among the tasks; the benchmark's usual file name in the folder that
``--data`` or the environment variable ``POSTTRAIN_DATA`` names; its hub data set, through
``datasets`` and its cache. Being offline is normal: what is missing is told with every place that
was looked at. ``reasoning_gym:<dataset>`` needs no source.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envs
from envs import Task
from envs.data import Columns, tasks_of
from envs.files import hub_dataset
from envs.files import read as read_file
from posttrain.chat import Chat
from posttrain.errors import UsageError
from posttrain.evaluation.benchmarks import BENCHMARKS, PLAIN_TEMPLATES, Benchmark, named
from rewards import check_row, load, required_columns

DATA_VARIABLE = "POSTTRAIN_DATA"
_GYM = "reasoning_gym:"


@dataclass(frozen=True, slots=True)
class Suite:
    """One benchmark under one template, ready to be played."""

    benchmark: str
    template: str
    environment: envs.Environment
    tasks: Sequence[Task]
    votes: bool

    @property
    def name(self) -> str:
        return f"{self.benchmark}/{self.template}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be evaluated."""

    tasks: str  # "gsm8k,humaneval,reasoning_gym:chain_sum,mine=path.jsonl"
    data: str | None = None  # a folder
    limit: int = 0  # rows of each; 0: all
    templates: int = 3  # of each, at most


def suites(wanted: Wanted) -> list[Suite]:
    """Every benchmark under each of its templates. Raises UsageError for what can't be had."""
    found: list[Suite] = []
    for name in (part.strip() for part in wanted.tasks.split(",") if part.strip()):
        if name.startswith(_GYM):
            found.append(_gym(name, wanted.limit or 500))
            continue
        label, separator, path = name.partition("=")
        for benchmark in named(label):
            rows = _rows(benchmark, path if separator else "", wanted.data)
            found += _templated(benchmark, rows, wanted)
    if not found:
        raise UsageError(f"no task is named; known: {', '.join(BENCHMARKS)}, {_GYM}<dataset>")
    return found


def check_room(chosen: Sequence[Suite], chat: Chat, window: int) -> None:
    """Raises UsageError when a prompt fills the model's window."""
    for suite in chosen:
        sizes = [len(chat.prompt_ids(task.messages)) for task in suite.tasks]
        long = sum(size >= window for size in sizes)
        if long:
            raise UsageError(
                f"{suite.name}: {long} of {len(sizes)} prompts leave no room for an answer in the "
                f"model's window of {window} tokens, the longest has {max(sizes)}"
            )


def benchmark_rows(names: str, data: str | None) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows of benchmarks by name; ``NAME=PATH`` may be any name. Raises UsageError."""
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    for name in (part.strip() for part in names.split(",") if part.strip()):
        label, separator, path = name.partition("=")
        if separator:
            found[label] = read_file(path)
        else:
            found |= {one.name: _rows(one, "", data) for one in named(label)}
    if not found:
        raise UsageError(f"no benchmark is named; known: {', '.join(BENCHMARKS)}")
    return found


def _rows(benchmark: Benchmark, path: str, data: str | None) -> Sequence[Mapping[str, Any]]:
    if path:
        return read_file(path)
    folder = data or os.environ.get(DATA_VARIABLE)
    looked = []
    if folder:
        stem = benchmark.file.removesuffix(".gz")
        for candidate in (benchmark.file, stem, f"{benchmark.name}.parquet"):
            if (Path(folder) / candidate).is_file():
                return read_file(str(Path(folder) / candidate))
        looked.append(f"{Path(folder) / benchmark.file}")
    hub, subset, split = benchmark.hub
    try:
        return hub_dataset(hub, subset=subset, split=split)
    except UsageError as error:
        looked.append(f"{hub} ({error})")
    raise UsageError(
        f"benchmark {benchmark.name} is not here; looked at {'; '.join(looked)}. Give its file as "
        f"{benchmark.name}=PATH, or a folder that holds {benchmark.file} with --data or "
        f"{DATA_VARIABLE}"
    )


def _templated(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], wanted: Wanted
) -> list[Suite]:
    chosen = rows[: wanted.limit] if wanted.limit else rows
    reward = load(benchmark.reward)
    columns = Columns(
        required=tuple(sorted(required_columns(reward) & {"answer"})),
        check=lambda row: check_row(reward, row),
    )
    found = []
    for template in list(benchmark.templates)[: wanted.templates]:
        converted = [_row(benchmark, template, row, i) for i, row in enumerate(chosen)]
        name = f"{benchmark.name}/{template}"
        tasks = tasks_of(converted, name, columns)
        environment = envs.SingleTurn(name, _Fixed(tasks), reward)
        found.append(Suite(benchmark.name, template, environment, tasks, benchmark.votes))
    return found


def _row(
    benchmark: Benchmark, template: str, row: Mapping[str, Any], number: int
) -> dict[str, Any]:
    try:
        text = benchmark.templates[template].format(question=benchmark.question(row))
        more = benchmark.columns(row)
        return {"id": f"{number}", "prompt": text, "answer": benchmark.answer(row), **more}
    except KeyError as error:
        raise UsageError(
            f"{benchmark.name}, row {number}: {error.args[0]}; it has {', '.join(map(str, row))}"
        ) from None


def _gym(name: str, n: int) -> Suite:
    environment = envs.load(name)
    tasks = environment.tasks.held_out(n)
    return Suite(name, next(iter(PLAIN_TEMPLATES)), environment, tasks, votes=False)


class _Fixed:
    """A TaskSource whose tasks are all there to be evaluated on."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)

    def train(self, index: int) -> Task:
        return self._tasks[index % len(self._tasks)]

    def held_out(self, n: int) -> list[Task]:
        return self._tasks[:n]
