"""``pretrain quality`` and ``pretrain education`` make the models of the steps of those names."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """The arguments of both."""
    quality = commands.add_parser(
        "quality",
        help="a classifier for the step quality, from good documents and raw ones",
        description="Train a model; its threshold is where --retention of held-out raw pages pass.",
    )
    quality.add_argument("out", help="new folder")
    quality.add_argument("--positive", required=True, metavar="FOLDER", help="good documents")
    quality.add_argument("--negative", required=True, metavar="FOLDER", help="raw documents")
    quality.add_argument("--retention", type=float, default=0.2, help="share of raw pages to keep")
    quality.add_argument("--limit", type=int, default=100_000, help="documents of each, drawn")
    quality.set_defaults(run=run_quality)
    education = commands.add_parser(
        "education",
        help="a classifier for the step education, from a language model's scores",
        description="Ask a server about a sample of documents, then train a model on its scores. "
        "Scores are kept in OUT.scores.jsonl as they come; the same command goes on. "
        "A key for the server is read from the environment, PRETRAIN_API_KEY.",
    )
    education.add_argument("out", help="new folder")
    education.add_argument("--documents", required=True, metavar="FOLDER")
    education.add_argument("--server", required=True, metavar="URL", help="http://.../v1")
    education.add_argument("--model", required=True, help="its name at the server")
    education.add_argument("--limit", type=int, default=2_000, help="documents, drawn")
    education.add_argument("--concurrency", type=int, default=32)
    education.add_argument("--deadline-s", type=float, default=3600.0, help="for all of them")
    education.set_defaults(run=run_education)


def run_quality(options: argparse.Namespace) -> int:
    """Train, and say what passes."""
    from pretrain.data.quality import train_quality
    from pretrain.new_folder import check_free

    out = Path(options.out)
    check_free(out)
    positive = draw(Path(options.positive), options.limit)
    negative = draw(Path(options.negative), options.limit)
    about = train_quality(positive, negative, out, retention=options.retention)
    good, raw = (about["kept"][label] for label in ("good", "raw"))
    print(f"{out}: threshold {about['threshold']:.4f}; of held-out documents {good:.1%} of the")
    print(f"good and {raw:.1%} of the raw ones pass")
    return 0


def run_education(options: argparse.Namespace) -> int:
    """Score, train, and say how well the model agrees."""
    from pretrain.data.education import ScoreServer, distill, score_documents
    from pretrain.data.score_journal import ScoreJournal
    from pretrain.new_folder import check_free

    out = Path(options.out)
    check_free(out)
    texts = draw(Path(options.documents), options.limit)
    server = ScoreServer(
        options.server.rstrip("/"),
        options.model,
        concurrency=options.concurrency,
        deadline_s=options.deadline_s,
        api_key=os.environ.get("PRETRAIN_API_KEY", ""),
    )
    with ScoreJournal(out.with_name(f"{out.name}.scores.jsonl"), options.model) as journal:
        if journal.number:
            print(f"{journal.number:,} scores are there already")
        result = score_documents(texts, server, journal)
    for reason, number in result.failed.most_common():
        print(f"no score: {number:,} ({reason})")
    about = distill(texts, result.scores, out)
    print(f"{out}: {about['texts']:,} scores; correlation {about['correlation']:.2f}, held out")
    return 0


def draw(folder: Path, limit: int) -> list[str]:
    """The texts of ``limit`` documents, those of the smallest hashes: the same each time."""
    import heapq

    import xxhash

    from pretrain.data.folders import read_documents

    texts = (row["text"] for row in read_documents(folder))
    return heapq.nsmallest(limit, texts, key=lambda text: xxhash.xxh64_intdigest(text.encode()))
