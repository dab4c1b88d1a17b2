"""Small folders of documents for the tests of the stages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pretrain.data.folders import Row, read_documents, write_documents
from pretrain.data.stage import Stage, run_stage


def row(text: str, id: str, **metadata: Any) -> Row:
    return {"text": text, "id": id, "metadata": metadata}


def run(
    stage: Stage, rows: list[Row], folder: Path, *, per_shard: int = 3
) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """Kept rows, rejected rows and counts."""
    write_documents(folder / "in", rows, per_shard=per_shard)
    counts = run_stage(stage, folder / "in", folder / "out", rejects=True)
    return (
        list(read_documents(folder / "out")),
        list(read_documents(folder / "out.rejects")),
        counts,
    )


def words(seed: int, n: int) -> list[str]:
    """Unrelated pseudo-words: two seeds share no run of five."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(n)]
