"""Decides how folders of documents become tokenised shards: in parallel, resumable, whole or not.

Each ``NNNNN.jsonl.gz`` is tokenised by one process, a batch of documents at a time, into one pair
of files per source, and leaves a record when those are on the disk: a file with a record is not
done again. All of it lies in ``OUT.unfinished`` until the last record is there; then the manifest
is written and the folder gets its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.data import fim
from pretrain.data.documents import document_files
from pretrain.data.shard_files import (
    ShardSettings,
    Task,
    dtype_for,
    input_of,
    sync_folder,
    tokenise,
    write_whole,
)
from pretrain.data.shards import FORMAT, MANIFEST, TOKENIZER, Shards
from pretrain.errors import RunError, UsageError
from pretrain.tokenizer_files import FILES, TokenizerFiles, read_tokenizer


def write_shards(source: str | Path, out: str | Path, settings: ShardSettings) -> Shards:
    """Tokenise the folder ``source`` into the new folder ``out``; the same call goes on.

    Raises UsageError before anything is written (no documents, a tokenizer without what is asked
    for, ``out`` exists, an unfinished ``out`` of other settings), RunError for a document that
    can't be read, a full disk, or a process that died; what was done is kept.
    """
    out = Path(out)
    documents = document_files(source)
    if out.exists():
        raise UsageError(f"{out} exists: choose another folder or remove it")
    files = read_tokenizer(settings.tokenizer)
    end = files.end_token(settings.end_token)
    if settings.fim:
        fim.token_ids(settings.fim, files)
    aside = out.with_name(out.name + ".unfinished")
    try:
        with _claimed(aside, _identity(settings, files)):
            tasks = [Task(path, aside, settings) for path in documents]
            _run([task for task in tasks if not _is_done(task)], settings.processes, len(tasks))
            _finish(aside, [_read(task.record) for task in tasks], files, end, settings)
            os.rename(aside, out)
            sync_folder(out.parent)
            shutil.rmtree(out / "records")
    except OSError as error:
        raise RunError(
            f"can't write {aside}: {error.strerror}; the same command goes on"
        ) from error
    return Shards.open(out, verify=False)


def shards_stage(folder_in: Path, folder_out: Path, settings: dict[str, Any]) -> Shards:
    """``write_shards`` as the last of the stages over folders of documents."""
    return write_shards(folder_in, folder_out, ShardSettings(**settings))


def _identity(settings: ShardSettings, files: TokenizerFiles) -> str:
    """What must be the same for an unfinished folder to be gone on with."""
    decides = {**settings.model_dump(), "processes": 0, "tokenizer": files.fingerprint}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@contextmanager
def _claimed(folder: Path, identity: str) -> Iterator[None]:
    """The folder is this process's alone, and of these settings."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    with (folder / "records" / "identity").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is writing {folder}") from error
        file.seek(0)
        if (found := file.read()) and found != identity:
            raise UsageError(
                f"{folder} was begun with another tokenizer or other settings: remove it"
            )
        file.truncate(0)
        file.write(identity)
        file.flush()
        yield


def _is_done(task: Task) -> bool:
    return task.record.is_file() and _read(task.record)["input"] == input_of(task.documents)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _run(tasks: list[Task], processes: int, total: int) -> None:
    done = total - len(tasks)
    if done:
        print(f"shards: {done} of {total} files are done already", file=sys.stderr)
    if processes == 1 or len(tasks) < 2:
        for n, task in enumerate(tasks, done + 1):
            tokenise(task)
            print(f"shards: {n}/{total} files", file=sys.stderr)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads
    with ProcessPoolExecutor(min(processes, len(tasks)), context) as pool:
        waiting = {pool.submit(_alone, task): task for task in tasks}
        try:
            for n, future in enumerate(as_completed(waiting), done + 1):
                future.result()
                print(f"shards: {n}/{total} files", file=sys.stderr)
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenised was killed, perhaps for want of memory; the same command "
                "goes on (with fewer processes)"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _alone(task: Task) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    tokenise(task)


def _finish(
    out: Path,
    records: list[dict[str, Any]],
    files: TokenizerFiles,
    end: str,
    settings: ShardSettings,
) -> None:
    """Tokenizer, manifest and counts, from the records of all files of documents."""
    sources: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, one in record["sources"].items():
            sources.setdefault(name, {"files": []})["files"].append(one)
    if not sources:
        raise RunError("every document was empty: there are no tokens to write")
    counted = ("documents", "tokens", "characters", "fim")
    for source in sources.values():
        source.update({what: sum(one[what] for one in source["files"]) for what in counted})
    sides = [_by(sources, side) for side in (0, 1)]
    manifest = {
        "format": FORMAT,
        "tokenizer": {
            "fingerprint": files.fingerprint,
            "vocabulary": files.rows,
            "end_token": end,
            "end_id": files.vocabulary[end],
        },
        "dtype": dtype_for(files.rows),
        "settings": settings.model_dump(),
        "languages": sides[0],
        "domains": sides[1],
        "sources": dict(sorted(sources.items())),
    }
    _remove_strays(out, {one["stem"] for source in sources.values() for one in source["files"]})
    (out / TOKENIZER).mkdir(exist_ok=True)
    for name in FILES:
        if (files.folder / name).is_file():
            write_whole(out / TOKENIZER / name, (files.folder / name).read_text("utf-8"))
    write_whole(out / "counts.json", json.dumps(_counts(records, sources), indent=1))
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1))


def _remove_strays(out: Path, stems: set[str]) -> None:
    """What a file of documents left that was changed, or removed, before its shard was done."""
    for path in (*out.glob("*/*/*.ids"), *out.glob("*/*/*.offsets")):
        if str(path.relative_to(out).with_suffix("")) not in stems:
            path.unlink()


def _by(sources: dict[str, dict[str, Any]], side: int) -> dict[str, dict[str, int]]:
    """Documents and tokens of each language (side 0) or domain (side 1)."""
    totals: dict[str, Counter[str]] = {}
    for name, source in sources.items():
        counts = {what: source[what] for what in ("documents", "tokens")}
        totals.setdefault(name.split("/")[side], Counter()).update(counts)
    return {name: dict(counts) for name, counts in sorted(totals.items())}


def _counts(records: list[dict[str, Any]], sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What every stage leaves beside its documents."""
    empty = sum(record["empty"] for record in records)
    languages: dict[str, Counter[str]] = {}
    for name, source in sources.items():
        counts = {
            "in": source["documents"],
            "kept": source["documents"],
            "characters_in": source["characters"],
            "characters_kept": source["characters"],
            "tokens_kept": source["tokens"],
        }
        languages.setdefault(name.split("/")[0], Counter()).update(counts)
    return {
        "stage": "shards",
        **sum(languages.values(), Counter({"in": empty})),
        "dropped": {"empty": empty} if empty else {},
        "by_language": languages,
        "examples": {},
    }
