"""Rollouts on disk: each finished group at once, each finished step as one Parquet file.

    rollouts/step-000012.partial.jsonl    the groups of step 12 that are finished, in that order
    rollouts/step-000012.parquet          all of step 12; replaces the file above

A step is in one of the two. Sealing writes the Parquet file aside, renames it, and only then
removes the partial one; a crash in between leaves both, and then the Parquet file counts.

Both forms give back equal groups: token ids, float32 log-probs and float64 scores bit for bit (a
float32 is written to JSON as the float64 of the same value, whose repr is exact). In Parquet one
row is one rollout. ``messages``, ``parts`` and ``info`` are JSON there, because their keys are the
environment's; a lone surrogate in any text is kept as such in JSON and written as ``\\udXXX`` in
Parquet's plain strings, which are UTF-8.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs import EndReason
from posttrain.errors import RunError
from posttrain.storage.jsonl import JsonLines, read_lines, sync_folder, to_json
from posttrain.types import GREEDY, Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

_JSON = ("messages", "parts", "info")  # free-form, and so one column of text in Parquet
_ARRAYS = ("prompt_ids", "token_ids", "logprobs", "weight_versions")
_TURN = pa.struct(
    [
        ("prompt_ids", pa.list_(pa.int64())),
        ("token_ids", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float32())),
        ("weight_versions", pa.list_(pa.int64())),
        ("finish_reason", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("prompt_index", pa.int64()),
        ("sample_index", pa.int64()),
        ("rollout_id", pa.string()),
        ("task_id", pa.string()),
        ("value", pa.float64()),  # null: could not be judged
        ("outcome", pa.string()),
        ("parts", pa.string()),  # JSON
        ("detail", pa.string()),
        ("end_reason", pa.string()),
        ("generation_s", pa.float64()),
        ("reward_s", pa.float64()),
        ("turn_values", pa.list_(pa.float64())),
        ("info", pa.string()),  # JSON
        ("messages", pa.string()),  # JSON
        ("turns", pa.list_(_TURN)),
    ]
)


class RolloutFiles:
    """The rollouts folder of one run. Writing needs the run's lock, reading nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._partial: tuple[int, JsonLines] | None = None
        self._turn = threading.Lock()  # one step may be sealed while the next is appended to
        self.torn_lines = 0  # lines of partial files that did not parse, over all loads

    def append_group(self, group: Group) -> None:
        """Write one finished group at once.

        Raises RunError when a message holds something that is not JSON.
        """
        try:
            record = group_to_record(group)
            with self._turn:
                self._writer(group.step).append(record)
        except TypeError as error:
            raise RunError(
                f"rollouts of step {group.step}, prompt {group.prompt_index} can't be kept: "
                f"{error}. An environment's messages must be text, numbers, lists and dictionaries."
            ) from error

    def seal_step(self, step: int, groups: Sequence[Group]) -> None:
        """Write all groups of the step for good, then remove the partial file."""
        wrong = sorted({group.step for group in groups} - {step})
        if wrong:
            raise ValueError(f"seal_step({step}) was given groups of steps {wrong}")
        with self._turn:
            self._close_partial(step)
        path = self.parquet_path(step)
        temporary = path.with_name(path.name + ".tmp")
        rows = [row for group in groups for row in _rows(group)]
        with open(temporary, "wb") as file:
            table = pa.Table.from_pylist(rows, SCHEMA)
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(self.folder)
        self.partial_path(step).unlink(missing_ok=True)

    def load_partial(self, step: int) -> dict[int, Group]:
        """Groups finished before the step was sealed, by prompt index; empty once it is sealed.

        A torn last line is skipped and counted in ``torn_lines``.
        """
        if self.parquet_path(step).exists():
            return {}
        records, bad = read_lines(self.partial_path(step))
        self.torn_lines += bad
        groups: dict[int, Group] = {}
        for record in records:
            group = group_from_record(record)
            groups.setdefault(group.prompt_index, group)
        return groups

    def load_step(self, step: int) -> list[Group] | None:
        """The sealed groups of a step in prompt order; None when it is not sealed."""
        path = self.parquet_path(step)
        if not path.exists():
            return None
        return groups_of(pq.read_table(path, schema=SCHEMA, page_checksum_verification=True))

    def count(self) -> int:
        """Rollouts of the sealed steps that can be read; from the files' ends alone."""
        total = 0
        for step in self.sealed_steps():
            with contextlib.suppress(pa.ArrowException, OSError):
                total += pq.read_metadata(self.parquet_path(step)).num_rows
        return total

    def load_columns(self, step: int, names: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of a sealed step, a row per rollout: without ``turns`` it costs little."""
        rows = pq.read_table(self.parquet_path(step), columns=list(names)).to_pylist()
        for row in rows:
            row |= {name: json.loads(row[name] or "{}") for name in _JSON if name in row}
        return rows

    def sealed_steps(self) -> list[int]:
        return _steps(self.folder.glob("step-*.parquet"))

    def partial_steps(self) -> list[int]:
        """Steps with finished groups that are not sealed."""
        partial = _steps(self.folder.glob("step-*.partial.jsonl"))
        return sorted(set(partial) - set(self.sealed_steps()))

    def clean(self) -> None:
        """Remove what a crash left: half-written files, and partial files of sealed steps."""
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        for step in self.sealed_steps():
            self.partial_path(step).unlink(missing_ok=True)

    def set_damaged_aside(self, first: int) -> list[str]:
        """Rename what can't be read of the sealed steps from ``first`` on; returns the old names.

        Their rollouts are then generated again.
        """
        found = []
        for step in [step for step in self.sealed_steps() if step >= first]:
            path = self.parquet_path(step)
            try:
                self.load_step(step)
            except (pa.ArrowException, OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
                found.append(path.name)
        return found

    def parquet_path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.parquet"

    def partial_path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.partial.jsonl"

    def close(self) -> None:
        with self._turn:
            self._close_partial(None)

    def _writer(self, step: int) -> JsonLines:
        """The open partial file; with rollouts ahead of training steps alternate, so reopen."""
        if self._partial is None or self._partial[0] != step:
            self._close_partial(None)
            self._partial = (step, JsonLines(self.partial_path(step)))
        return self._partial[1]

    def _close_partial(self, step: int | None) -> None:
        """Close the open partial file if it is of this step, or in any case when None."""
        if self._partial is not None and step in (None, self._partial[0]):
            self._partial[1].close()
            self._partial = None


def group_to_record(group: Group) -> dict[str, Any]:
    """Plain data for one JSON line."""
    return {
        "step": group.step,
        "prompt_index": group.prompt_index,
        "rollouts": [_rollout_to_record(rollout, _turn_to_record) for rollout in _all(group)],
    }


def group_from_record(record: Mapping[str, Any]) -> Group:
    rollouts = [
        _rollout_from_record(row, tuple(_turn_from_record(turn) for turn in row["turns"]))
        for row in record["rollouts"]
    ]
    return _group(record["step"], record["prompt_index"], rollouts)


def _all(group: Group) -> list[Rollout]:
    return [*group.rollouts, *([] if group.greedy is None else [group.greedy])]


def _group(step: int, prompt: int, rollouts: Sequence[Rollout]) -> Group:
    """The greedy one, wherever it stands, apart from the others."""
    members = tuple(rollout for rollout in rollouts if rollout.sample_index != GREEDY)
    greedy = [rollout for rollout in rollouts if rollout.sample_index == GREEDY]
    return Group(step, prompt, members, greedy[0] if greedy else None)


def _rollout_to_record(rollout: Rollout, turn_to_record: Callable[[Turn], Any]) -> dict[str, Any]:
    return {
        "sample_index": rollout.sample_index,
        "rollout_id": rollout.rollout_id,
        "task_id": rollout.task_id,
        "value": None if rollout.score.value is None else float(rollout.score.value),
        "outcome": rollout.score.outcome.value,
        "parts": {name: float(value) for name, value in rollout.score.parts.items()},
        "detail": rollout.score.detail,
        "end_reason": rollout.end_reason.value,
        "generation_s": rollout.generation_s,
        "reward_s": rollout.reward_s,
        "turn_values": list(rollout.turn_values),
        "info": {name: float(value) for name, value in rollout.info.items()},
        "messages": [dict(message) for message in rollout.messages],
        "turns": [turn_to_record(turn) for turn in rollout.turns],
    }


def _rollout_from_record(row: Mapping[str, Any], turns: tuple[Turn, ...]) -> Rollout:
    return Rollout(
        rollout_id=row["rollout_id"],
        task_id=row["task_id"],
        sample_index=row["sample_index"],
        turns=turns,
        messages=tuple(row["messages"]),
        score=Score(row["value"], Outcome(row["outcome"]), row["parts"], row["detail"]),
        end_reason=EndReason(row["end_reason"]),
        generation_s=row["generation_s"],
        reward_s=row["reward_s"],
        turn_values=tuple(row["turn_values"]),
        info=row.get("info") or {},
    )


def _turn_to_columns(turn: Turn) -> dict[str, Any]:
    completion = turn.completion
    return {
        "prompt_ids": turn.prompt_ids,
        "token_ids": completion.token_ids,
        "logprobs": completion.logprobs,
        "weight_versions": completion.weight_versions,
        "finish_reason": completion.finish_reason.value,
    }


def _turn_to_record(turn: Turn) -> dict[str, Any]:
    columns = _turn_to_columns(turn)
    return columns | {name: columns[name].tolist() for name in _ARRAYS}


def _turn_from_record(row: Mapping[str, Any]) -> Turn:
    completion = Completion(
        token_ids=np.array(row["token_ids"], dtype=np.int64),
        logprobs=np.array(row["logprobs"], dtype=np.float32),
        weight_versions=np.array(row["weight_versions"], dtype=np.int64),
        finish_reason=FinishReason(row["finish_reason"]),
    )
    return Turn(np.array(row["prompt_ids"], dtype=np.int64), completion)


def _rows(group: Group) -> Iterable[dict[str, Any]]:
    """Rows for Parquet: a rollout's record with its step, the free-form fields as JSON."""
    for rollout in _all(group):
        row = _rollout_to_record(rollout, _turn_to_columns)
        row |= {"step": group.step, "prompt_index": group.prompt_index}
        row |= {name: to_json(row[name]) for name in _JSON}
        for name in ("rollout_id", "task_id", "detail"):
            row[name] = row[name].encode("utf-8", "backslashreplace").decode()
        yield row


def groups_of(table: pa.Table) -> list[Group]:
    """The groups in a table of SCHEMA, in prompt order; only the rollouts that are in the table."""
    groups: dict[tuple[int, int], list[Rollout]] = {}
    rows = table.drop_columns(["turns"]).to_pylist()
    for row, turns in zip(rows, _turns(table.column("turns")), strict=True):
        row |= {name: json.loads(row[name] or "{}") for name in _JSON}  # info came later
        members = groups.setdefault((row["step"], row["prompt_index"]), [])
        members.append(_rollout_from_record(row, turns))
    return [_group(step, index, members) for (step, index), members in sorted(groups.items())]


def _turns(column: pa.ChunkedArray) -> Iterable[tuple[Turn, ...]]:
    """Per row its turns, straight from Arrow's buffers: Python lists cost ten times as much."""
    rows = column.combine_chunks()
    structs = rows.flatten()
    fields = dict(zip(structs.type.names, structs.flatten(), strict=True))
    reasons = fields.pop("finish_reason").to_pylist()
    arrays = zip(*(_slices(fields[name]) for name in _ARRAYS), strict=True)
    turns = [
        Turn(prompt, Completion(ids, logprobs, versions, FinishReason(reason)))
        for (prompt, ids, logprobs, versions), reason in zip(arrays, reasons, strict=True)
    ]
    end = 0
    for n in rows.value_lengths().to_pylist():
        yield tuple(turns[end : end + n])
        end += n


def _slices(lists: pa.ListArray) -> list[Any]:
    """A numpy array of its own for each list."""
    values = lists.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    return [part.copy() for part in np.split(values, ends[:-1])] if len(ends) else []


def _steps(paths: Iterable[Path]) -> list[int]:
    return sorted(int(path.name[5:].split(".", 1)[0]) for path in paths)
