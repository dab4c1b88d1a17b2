"""Decides what one task of the chain does: read its files, pass each document through the steps.

The task is a block for datatrove's executors, which give it a rank, mark it as completed and skip
it in the next run. Its shard is written under a hidden name and renamed when it is whole, so a task
that was killed leaves nothing that looks finished, and its counts go with the shard.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from pretrain.data.counts import UNKNOWN, StepCounts, count_words
from pretrain.data.readers import Reader
from pretrain.data.steps import Step
from pretrain.errors import RunError

COMPRESSION = 1  # gzip level: a shard is read once or twice, 6 would take three times as long
_TOLD_EVERY_S = 0.5


class Chain(PipelineStep):
    """Reader, steps and writer of one task."""

    type = "chain"

    def __init__(
        self,
        reader: Reader,
        steps: Sequence[Step],
        out: Path,
        *,
        rejects: bool = False,
        deadline: float | None = None,
    ) -> None:
        """``deadline``: a time of ``time.time()`` at which the task gives up."""
        self.name = " ".join(step.name for step in steps)
        super().__init__()
        self.reader, self.steps, self.out = reader, steps, out
        self.rejects, self.deadline = rejects, deadline

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Everything that the task does; yields what it kept, for blocks behind it."""
        counts = [StepCounts(step.name) for step in self.steps]
        totals = {"in": 0, "kept": 0, "characters_kept": 0, "words_kept": 0}
        with ExitStack() as stack:
            rejected = None
            if self.rejects:
                rejected = stack.enter_context(new_shard(rejects_of(self.out), rank))
            kept = stack.enter_context(new_shard(self.out, rank))
            told = 0.0
            for document in self.reader.read(rank, world_size):
                now = time.time()
                if now - told > _TOLD_EVERY_S:
                    self._tell(rank, totals)
                    told = now
                if self.deadline is not None and now > self.deadline:
                    raise RunError("the deadline passed before every document was read")
                totals["in"] += 1
                if self._check(document, counts, rejected):
                    totals["kept"] += 1
                    totals["characters_kept"] += len(document.text)
                    totals["words_kept"] += count_words(document.text)
                    kept.write(to_line(document))
                    yield document
        self._tell(rank, totals, counts)

    def _check(
        self, document: Document, counts: Sequence[StepCounts], rejected: gzip.GzipFile | None
    ) -> bool:
        for step, count in zip(self.steps, counts, strict=True):
            before, was_html = document.text, document.metadata.get("html")
            reason = step.check(document)
            language = document.metadata.get("language", UNKNOWN)
            markup = document.metadata.get("html") if reason is None else was_html
            count.add(before, document.text, language, reason, markup=bool(markup))
            if reason is None:
                continue
            if rejected is not None:
                document.text = before
                document.metadata |= {"dropped_by": step.name, "reason": reason}
                rejected.write(to_line(document))
            return False
        return True

    def _tell(
        self, rank: int, totals: dict[str, int], counts: Sequence[StepCounts] | None = None
    ) -> None:
        """Where the task is, for the progress line; with its counts when it is done."""
        record: dict[str, Any] = {"totals": totals, "done": counts is not None}
        if counts is not None:
            record |= {
                "steps": [one.as_json() for one in counts],
                "reading": dict(self.reader.counts),
                "files": self.reader.damaged_files,
            }
        write_json(task_file(self.out, rank), record)


def task_file(out: Path, rank: int) -> Path:
    """Where a task says how far it is, beside the shards."""
    return out / ".tasks" / f"{rank:05d}.json"


def rejects_of(out: Path) -> Path:
    """The folder of what a step or stage dropped."""
    return out.with_name(f"{out.name}.rejects")


@contextmanager
def new_shard(folder: Path, rank: int) -> Iterator[gzip.GzipFile]:
    """A shard to write lines to; it gets its name when the block ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{rank:05d}.jsonl.gz"
    temporary = _aside(path)
    try:
        with open(temporary, "wb") as raw:
            # Neither name nor time in the header: equal documents make equal bytes.
            with gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as file:
                yield file
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_line(document: Document) -> bytes:
    """datatrove's JSON lines form."""
    row = {"text": document.text, "id": document.id, "metadata": document.metadata}
    # Lone surrogates, which JSON input may hold, are escaped: UTF-8 has none.
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"


def write_json(path: Path, value: object) -> None:
    """Replace the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def remove_strays(folder: Path) -> None:
    """What killed tasks left under hidden names. Only when no task runs any more."""
    for path in (*folder.glob(".*.tmp"), *task_file(folder, 0).parent.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """A hidden name of this process alone: a task may be given out twice by mistake."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
