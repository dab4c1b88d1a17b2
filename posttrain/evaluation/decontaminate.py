"""``posttrain decontaminate``: a data file without the rows that hold an evaluation item.

The removed rows are kept beside, each with the reason and the item that it matched. What counts as
holding an item is decided in ``envs.contamination``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("decontaminate", help="a data file without evaluation items")
    parser.add_argument("file", type=Path, help="JSON lines or Parquet")
    parser.add_argument(
        "--against", required=True, help="benchmarks by comma; NAME=FILE for rows of your own"
    )
    parser.add_argument("--data", help="folder with the benchmarks' files")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the result")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    print(json.dumps(decontaminate(options.file, options.against, options.out, options.data)))
    return 0


def decontaminate(
    file: str | Path, against: str, out: str | Path, data: str | None = None
) -> dict[str, Any]:
    """Write ``clean.jsonl`` and ``removed.jsonl`` to the new folder ``out``, and count.

    ``against`` names benchmarks by comma, ``NAME=FILE`` for rows of one's own; ``data`` is a folder
    with their files. Raises UsageError for what can't be read, and where ``out`` is not empty.
    """
    from envs.contamination import Index, row_text
    from envs.files import read

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty: choose another folder with --out")
    index = Index.of(evaluation_texts(against, data))
    rows = read(str(file))
    clean: list[Mapping[str, Any]] = []
    removed: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows):
        match = index.find(row_text(row))
        if match is None:
            clean.append(row)
        else:
            about = {
                "row": number,
                "reason": match.reason,
                "share": round(match.share, 3),
                "item": match.item.text,
            }
            removed.append({"contamination": about, **row})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "clean.jsonl", clean)
    _write(folder / "removed.jsonl", removed)
    by_set = Counter(one["contamination"]["reason"].split()[1] for one in removed)
    return {"rows": len(rows), "removed": len(removed), "by_benchmark": dict(by_set)}


def evaluation_texts(against: str, data: str | None = None) -> dict[str, list[str]]:
    """The questions and worked answers of benchmarks, by name. Raises UsageError."""
    from posttrain.evaluation.sources import benchmark_rows

    return {
        name: [value for row in rows for value in row.values() if isinstance(value, str)]
        for name, rows in benchmark_rows(against, data).items()
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    os.replace(beside, path)
