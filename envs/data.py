"""Tasks from data: rows in memory, JSONL or Parquet files, a ``datasets`` dataset.

A row needs ``prompt`` (text) or ``messages`` (a conversation that the model goes on with), under
those names or as ``prompt_column`` / ``messages_column`` say. Its answer is in ``answer_column``;
every other column is handed to rewards by name.

Held out is what ``envs.splitting`` says of the prompt, or a data set of its own (``held_out=``), in
which case training rows that ask one of its questions are dropped. The training stream is endless:
each pass over the rows is shuffled anew, by (seed, pass) alone, so row ``index`` needs no history.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envs.protocol import Task
from envs.single_turn import user
from envs.splitting import PERCENT, held_out, question_of
from rewards import UsageError, did_you_mean

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what; ``required`` must hold something in every row."""

    prompt: str = "prompt"
    messages: str = "messages"
    answer: str = "answer"
    required: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], None] | None = None  # the reward's, of a whole row


class DataTasks:
    """A TaskSource over rows. Checks every row when made: UsageError names the first bad one."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        name: str,
        columns: Columns = Columns(),
        seed: int = 0,
        held_out_rows: Sequence[Row] | None = None,
        held_out_percent: int = PERCENT,
    ) -> None:
        if not 0 <= held_out_percent < 100:
            raise UsageError(f"held_out_percent must be from 0 to 99, got {held_out_percent}")
        tasks = tasks_of(rows, name, columns)
        if held_out_rows is None:
            aside = [t for t in tasks if held_out(question_of(t.messages), held_out_percent)]
        else:
            aside = tasks_of(held_out_rows, f"{name} (held out)", columns)
        questions = {question_of(task.messages): task for task in reversed(aside)}
        self.name = name
        self._seed = seed
        self._held_out = list(reversed(questions.values()))  # first of equals, in order
        self._train = [task for task in tasks if question_of(task.messages) not in questions]
        if not self._train:
            raise UsageError(f"{name}: all {len(tasks)} rows are held out, none is left to train")
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        """Training tasks in one pass."""
        return len(self._train)

    def train(self, index: int) -> Task:
        """The index-th training task; pass ``index // len(self)`` has its own order."""
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        epoch, position = divmod(index, len(self._train))
        return self._train[self._order(epoch)[position]]

    def held_out(self, n: int) -> list[Task]:
        """The first n held-out tasks, in the order of the data, with distinct questions."""
        if len(self._held_out) < n:
            raise UsageError(
                f"{self.name}: {n} held-out tasks asked for, there are {len(self._held_out)} "
                f"(and {len(self._train)} to train on)"
            )
        return self._held_out[:n]

    def every(self) -> list[Task]:
        """All training tasks in the order of the data, then the held-out ones."""
        return [*self._train, *self._held_out]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._train)))
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        return order


def tasks_of(rows: Sequence[Row], name: str, columns: Columns) -> list[Task]:
    """Rows to tasks. Raises UsageError for no rows, a missing column, or a row that is no task."""
    if len(rows) == 0:
        raise UsageError(f"{name} is empty: it has no rows")
    first = rows[0]
    if not isinstance(first, Mapping):
        raise UsageError(f"{name}: a row must be a mapping of columns, got {first!r:.80}")
    _check_columns(first, name, columns)
    return [_task(row, number, name, columns) for number, row in enumerate(rows)]


def _check_columns(first: Row, name: str, columns: Columns) -> None:
    present = ", ".join(map(str, first))
    if columns.prompt not in first and columns.messages not in first:
        hint = did_you_mean(columns.prompt, first) if columns.prompt != "prompt" else ""
        raise UsageError(
            f"{name} has no column {columns.prompt!r} or {columns.messages!r}.{hint} Its columns: "
            f"{present}. Choose with prompt_column= or messages_column=."
        )
    for column in columns.required:
        if (columns.answer if column == "answer" else column) not in first:
            choose = " Choose with answer_column=." if column == "answer" else ""
            wanted = columns.answer if column == "answer" else column
            raise UsageError(
                f"{name} has no column {wanted!r}, which the reward asks for. "
                f"Its columns: {present}.{choose}"
            )


def _task(row: Row, number: int, name: str, columns: Columns) -> Task:
    where = f"{name}, row {number}"
    if row.get(columns.prompt) is not None:
        prompt = row[columns.prompt]
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(f"{where}: {columns.prompt!r} must be text, got {prompt!r:.80}")
        messages: tuple[Mapping[str, Any], ...] = (user(prompt),)
    else:
        messages = _messages(row.get(columns.messages), where)
    answer = row.get(columns.answer)
    for column in columns.required:
        value = answer if column == "answer" else row.get(column)
        if value is None or (column == "answer" and not str(value).strip()):
            raise UsageError(f"{where}: {column!r}, which the reward asks for, is empty")
    rest = {k: v for k, v in row.items() if k not in (columns.answer, columns.messages)}
    if columns.check is not None:
        try:
            columns.check({**rest, "answer": answer})
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    return Task(str(row.get("task_id", row.get("id", number))), messages, answer, rest)


def _messages(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    shape = "a list of {'role': ..., 'content': ...} ending with the user's"
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UsageError(f"{where}: messages must be {shape}, got {value!r:.80}")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UsageError(f"{where}: messages must be {shape}, got {message!r:.80}")
    if value[-1]["role"] == "assistant":
        raise UsageError(f"{where}: the last message is the assistant's; nothing is left to write")
    return tuple(value)
