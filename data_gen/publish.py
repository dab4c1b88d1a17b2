"""Turns finished items into a data set: Parquet shards, what was dropped, a card, a summary.

    data/train-00000-of-00002.parquet   the kept rows, in the order of the input
    dropped/dropped-00000-of-00001.parquet   the rest, each with its reason in ``dropped``
    README.md                           the data card
    report.html                         counts, and rows to look at
    summary.json                        counts

All of it is made anew from ``work/`` each time, in a folder beside, and renamed. Rows pass one by
one, more than once: the schema of all shards is known before the first is written, because a column
that is empty in one shard and not in the next would otherwise have two types.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.card import card
from data_gen.diversity import Survey
from data_gen.filters import first_reason, read_filters
from data_gen.pipeline import Outcome
from data_gen.report import Examples, report
from data_gen.store import Store, write_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SHARD_ROWS = 20_000
_CHUNK_ROWS = 2_000
Rows = Callable[[], Iterator[dict[str, Any]]]  # a fresh pass over them


def publish(
    store: Store, job: Mapping[str, Any], outcome: Outcome, filters: Any = ("duplicates",)
) -> Dataset:
    """Write everything; returns the kept rows."""
    counts: Counter[str] = Counter()
    examples, survey = Examples(), Survey()
    reasons: list[str] = []  # of every row; a filter sees each row once
    for row in _judged(store, outcome.keys, filters):
        counts[row["dropped"]] += 1
        reasons.append(row["dropped"])
        examples.see(row)
        survey.see(row)
    summary = {
        "items": len(outcome.keys),
        "items_failed": outcome.failed.total(),
        "failures": dict(outcome.failed.most_common(20)),
        "kept": counts.pop("", 0),
        "dropped": dict(counts.most_common()),
        "diversity": survey.found(),
        "requests": dict(outcome.counts),
        "cost": outcome.cost,
    }

    def rows(dropped: bool) -> Iterator[dict[str, Any]]:
        every = zip(store.rows(outcome.keys), reasons, strict=True)
        return (row | {"dropped": why} for row, why in every if bool(why) is dropped)

    kept = _replace(store.folder / "data", lambda: rows(dropped=False), "train")
    _replace(store.folder / "dropped", lambda: rows(dropped=True), "dropped")
    write_json(store.folder / "summary.json", summary)
    text = card(job, summary, examples.kept[:3])
    (store.folder / "README.md").write_text(text, encoding="utf-8")
    page = report(job, summary, examples)
    (store.folder / "report.html").write_text(page, encoding="utf-8")
    return _load(kept, store.folder / "work" / "cache")


def _judged(store: Store, keys: Sequence[str], filters: Any) -> Iterator[dict[str, Any]]:
    """Every row, with what the filters say of those that were kept so far."""
    chosen = read_filters(filters)
    for row in store.rows(keys):
        if not row["dropped"]:
            row["dropped"] = first_reason(chosen, row)
        yield row


def _replace(folder: Path, rows: Rows, split: str) -> list[Path]:
    """The folder anew, with the rows as Parquet shards; empty where there is no row."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    paths = _write(beside, rows, split)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    return [folder / path.name for path in paths]


def _write(folder: Path, rows: Rows, split: str) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, n_rows = _schema_of(rows())
    if not n_rows:
        return []
    n_shards = -(-n_rows // SHARD_ROWS)
    every, paths = rows(), []
    for number in range(n_shards):
        path = folder / f"{split}-{number:05d}-of-{n_shards:05d}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for chunk in _chunks(itertools.islice(every, SHARD_ROWS)):
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
        paths.append(path)
    return paths


def _schema_of(rows: Iterable[dict[str, Any]]) -> tuple[pa.Schema, int]:
    """One schema that every row fits, and how many rows there are."""
    import pyarrow as pa

    schemas, n_rows = [], 0
    for chunk in _chunks(rows):
        schemas.append(pa.Table.from_pylist(_with_all_keys(chunk)).schema)
        n_rows += len(chunk)
    if not schemas:
        return pa.schema([]), 0
    return pa.unify_schemas(schemas, promote_options="permissive"), n_rows


def _with_all_keys(chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``from_pylist`` takes its columns from the first row."""
    names = dict.fromkeys(name for row in chunk for name in row)
    return [{name: row.get(name) for name in names} for row in chunk]


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _CHUNK_ROWS)):
        yield chunk


def _load(paths: Sequence[Path], cache: Path) -> Dataset:
    """The kept rows, memory-mapped; without any, an empty data set."""
    from datasets import Dataset

    if not paths:
        return Dataset.from_list([])
    return Dataset.from_parquet([str(p) for p in paths], cache_dir=str(cache))  # type: ignore[return-value]
