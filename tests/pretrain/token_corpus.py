"""What the tests of tokens share: a small tokenizer, folders of documents, shards made of them."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.data.shards import Shards
from pretrain.tokenizer import train_tokenizer

FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@cache
def tokenizer_folder() -> Path:
    """Bytes and little else, and the tokens of fill-in-the-middle."""
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    tokenizer = train_tokenizer(["def add(a, b): return a + b", "der Hund"] * 20, vocab_size=280)
    tokenizer.add_tokens(list(FIM), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def write_documents(folder: Path, files: Iterable[Iterable[dict[str, Any]]]) -> Path:
    """``NNNNN.jsonl.gz`` as a stage writes them; a document is {"text": ..., **metadata}."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, documents in enumerate(files):
        with gzip.open(folder / f"{n:05}.jsonl.gz", "wt", encoding="utf-8") as file:
            for i, document in enumerate(documents):
                metadata = {name: value for name, value in document.items() if name != "text"}
                row = {"text": document["text"], "id": f"{n}/{i}", "metadata": metadata}
                file.write(json.dumps(row) + "\n")
    return folder


def make_shards(folder: Path, sizes: dict[str, int]) -> Shards:
    """{"en/web": tokens} -> shards of numbered documents, of 12 tokens with their end each."""
    files: list[list[dict[str, Any]]] = [[], []]
    for name, size in sizes.items():
        language, domain = name.split("/")
        for n in range(size // 12):
            text = f"{name[:2]} {n:08}"
            files[n % 2].append({"text": text, "language": language, "domain": domain})
    write_documents(folder / "documents", files)
    return write_shards(
        folder / "documents", folder / "shards", ShardSettings(tokenizer=str(tokenizer_folder()))
    )
