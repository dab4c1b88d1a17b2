"""Near-duplicate removal beside datatrove's, on documents with planted near-duplicates.

All read the same folder of ``.jsonl.gz`` shards and write one without the duplicates, each in a
process of its own, one after the other: ours, datatrove as it comes (its spaCy word tokenizer), and
datatrove with a plain split tokenizer in its place. Reader and writer are the same for all, as
datatrove's own need a package more. CPU seconds and wall seconds of each.

A third of the texts come again with words replaced, so that the Jaccard similarity of the pair is
known. Recall: the share of pairs at J >= 0.8 of which one is gone. False: documents that are gone
although nothing else is as similar as 0.8. ``memory``: the peak of ours by number of documents,
whose length costs time and disk alone.

    python scripts/bench/near_duplicates.py speed --documents 20000
    python scripts/bench/near_duplicates.py memory --documents 10000 50000 200000 --words 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pretrain.data.folders import COUNTS, Row, ShardWriter, read_documents, read_shard
from pretrain.data.near_duplicates import NearDuplicates
from pretrain.data.stage import run_stage

N = 5  # words of a shingle
SHARDS = 4
THRESHOLD = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000])
    parser.add_argument("--words", type=int, default=300, help="of a document")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=64)
    options = parser.parse_args()
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            pairs = plant(root / "in", documents, options.words)
            if options.what == "memory":
                print(json.dumps(grow(root, documents, options.memory_mb)), flush=True)
            else:
                for repeat in range(options.repeats):
                    print(json.dumps(compare(root, pairs, repeat)), flush=True)


def plant(folder: Path, documents: int, length: int, seed: int = 0) -> dict[str, float]:
    """Write documents of ``length`` words; returns the similarity of each pair, by the number in
    its ids.
    """
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(30_000)]
    weights = 1 / np.arange(10, len(vocabulary) + 10)
    edges = np.cumsum(weights / weights.sum())
    pairs: dict[str, float] = {}
    rows: list[Row] = []
    originals = documents * 3 // 4
    for i in range(originals):
        drawn = np.searchsorted(edges, generator.random(length) * edges[-1])
        words = [vocabulary[j] for j in drawn]
        rows.append({"text": sentences(words), "id": f"a{i}", "metadata": {}})
        if i >= documents - originals:
            continue
        changed = list(words)
        for at in rng.sample(range(length), rng.randint(1, max(1, length * 16 // 300))):
            changed[at] = rng.choice(vocabulary)
        pairs[str(i)] = similarity(words, changed)
        rows.append({"text": sentences(changed), "id": f"b{i}", "metadata": {}})
    rng.shuffle(rows)
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        writer = ShardWriter(folder / f"{shard:05d}.jsonl.gz")
        for row in rows[shard::SHARDS]:
            writer.write(row)
        writer.close()
    (folder / COUNTS).write_text("{}")
    return pairs


def sentences(words: list[str]) -> str:
    """Twelve words each."""
    return " ".join(
        " ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)
    )


def similarity(one: list[str], other: list[str]) -> float:
    a, b = (set(zip(*(words[i:] for i in range(N)), strict=False)) for words in (one, other))
    return len(a & b) / len(a | b)


def ours(source: Path, out: Path, memory_mb: int = 256) -> None:
    run_stage(NearDuplicates(threshold=THRESHOLD, memory_mb=memory_mb), source, out)


def datatrove(source: Path, out: Path) -> None:
    """Its four steps in this process, as in its own example of MinHash deduplication."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup
    from datatrove.pipeline.base import PipelineStep

    class Read(PipelineStep):
        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
            for row in read_shard(source / f"{rank:05d}.jsonl.gz"):
                yield Document(row["text"], row["id"], metadata=row["metadata"])

    class Write(PipelineStep):
        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
            writer = ShardWriter(out / "kept" / f"{rank:05d}.jsonl.gz")
            for document in data:
                writer.write({"text": document.text, "id": document.id, "metadata": {}})
                yield document
            writer.close()

    settings = dedup.MinhashConfig(n_grams=N, num_buckets=14, hashes_per_bucket=8)
    signatures, buckets, remove = (str(out / name) for name in ("signatures", "buckets", "remove"))
    (out / "kept").mkdir(parents=True)
    steps: list[tuple[int, list[Any]]] = [
        (SHARDS, [Read(), dedup.MinhashDedupSignature(signatures, settings)]),
        (14, [dedup.MinhashDedupBuckets(signatures, buckets, config=settings)]),
        (1, [dedup.MinhashDedupCluster(buckets, remove, config=settings)]),
        (SHARDS, [Read(), dedup.MinhashDedupFilter(remove), Write()]),
    ]
    for number, (tasks, pipeline) in enumerate(steps):
        logs = str(out / "logs" / str(number))
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()


def datatrove_split(source: Path, out: Path) -> None:
    """The same, splitting at white space instead of asking spaCy."""
    from datatrove.pipeline.dedup import minhash

    class Split:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    minhash.load_word_tokenizer = lambda language: Split()
    datatrove(source, out)


def compare(root: Path, pairs: dict[str, float], repeat: int) -> dict[str, Any]:
    """Rates and findings of all three, and the ratios to ours."""
    result: dict[str, Any] = {}
    for run in (ours, datatrove, datatrove_split):
        out = root / f"{run.__name__}{repeat}"
        cost = in_a_process(run, root / "in", out)
        kept = out if run is ours else out / "kept"
        if run is not ours:
            (kept / COUNTS).write_text("{}")
        result[run.__name__] = cost | found(kept, pairs)
    documents = sum(1 for _ in read_documents(root / "in"))
    for one in result.values():
        one["documents_per_cpu_s"] = round(documents / one["cpu_s"])
    for name in ("datatrove", "datatrove_split"):
        result[name]["ours_faster"] = round(result[name]["cpu_s"] / result["ours"]["cpu_s"], 1)
    return {"documents": documents, **result}


def found(kept: Path, pairs: dict[str, float]) -> dict[str, Any]:
    """Recall at the threshold, and documents that are gone without a reason."""
    left = {row["id"] for row in read_documents(kept)}
    gone = {i: (f"a{i}" not in left) + (f"b{i}" not in left) for i in pairs}
    alike = [i for i, value in pairs.items() if value >= THRESHOLD]
    originals = sum(1 for one in left if one[0] == "a" and one[1:] not in pairs)
    false = sum(gone[i] for i in pairs if i not in set(alike))
    return {
        "recall": round(sum(gone[i] == 1 for i in alike) / len(alike), 4),
        "pairs": len(alike),
        "false": false,
        "unpaired_kept": originals,
    }


def in_a_process(run: Callable[[Path, Path], None], source: Path, out: Path) -> dict[str, Any]:
    """Its costs; imports are not counted."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_measured, args=(run, source, out, queue))
    child.start()
    cost: dict[str, Any] = queue.get(timeout=3600)
    child.join(60)
    return cost


def _measured(run: Callable[[Path, Path], None], source: Path, out: Path, queue: Any) -> None:
    if run in (datatrove, datatrove_split):
        import spacy
        import xxhash
        from datatrove.utils.hashes import xxhash as theirs
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        load_word_tokenizer("eng")
        spacy.blank("en")("It is loaded.")
        # Version 4 of xxhash takes no strings, which this version of datatrove hands it.
        hashed = xxhash.xxh64_intdigest
        theirs.xxhash = SimpleNamespace(xxh64_intdigest=lambda text: hashed(text.encode()))
    else:
        import rensa  # noqa: F401
    start, wall = time.process_time(), time.perf_counter()
    base = peak_mb()
    run(source, out)
    cost = {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - wall}
    queue.put(cost | {"base_mb": base, "peak_mb": peak_mb()})


def peak_mb() -> int:
    """Of this program: getrusage would count what its parent held before."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def grow(root: Path, documents: int, memory_mb: int) -> dict[str, Any]:
    """Peak resident memory of ours."""
    cost = in_a_process(partial(ours, memory_mb=memory_mb), root / "in", root / "out")
    return {"documents": documents, "memory_mb": memory_mb, **cost}


if __name__ == "__main__":
    main()
