"""Shards: what was written is what the tokenizer says; damage, other tokenizers, full disks."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.fim import FimSettings
from pretrain.data.shard_files import ShardSettings
from pretrain.data.shard_writer import write_shards
from pretrain.data.shards import Shards, join
from pretrain.errors import RunError, UsageError
from pretrain.tokenizer import train_tokenizer
from pretrain.tokenizer_files import read_tokenizer
from tests.pretrain.token_corpus import make_shards, tokenizer_folder, write_documents

DOCUMENTS: list[list[dict[str, Any]]] = [
    [
        {"text": "der Hund", "language": "de", "domain": "web"},
        {"text": "def add(a, b):\n    return a + b", "language": "en", "domain": "code"},
        {"text": "", "language": "de", "domain": "web"},
    ],
    [{"text": "plain <|endoftext|> text"}, {"text": "Hund", "language": "de", "domain": "web"}],
]


def written(tmp_path: Path, **settings: Any) -> Shards:
    documents = write_documents(tmp_path / "documents", DOCUMENTS)
    return write_shards(
        documents, tmp_path / "shards", ShardSettings(tokenizer=str(tokenizer_folder()), **settings)
    )


def ids_of(text: str) -> list[int]:
    files = read_tokenizer(tokenizer_folder())
    files.tokenizer.encode_special_tokens = True
    return [*files.tokenizer.encode(text, add_special_tokens=False).ids, 0]


def test_documents_lie_end_to_end_by_language_and_domain(tmp_path: Path) -> None:
    shards = written(tmp_path)
    sources = join([shards])
    assert list(sources) == ["de/web", "en/code", "unknown/text"]
    german, hund = ids_of("der Hund"), ids_of("Hund")
    ids, starts = sources["de/web"].read(0, len(german) + len(hund))
    assert ids.tolist() == german + hund  # of two files
    assert starts.tolist() == [0, len(german)]
    assert sources["de/web"].document(1).tolist() == hund
    ids, starts = sources["de/web"].read(1, len(german))
    assert (ids.tolist(), starts.tolist()) == ([*german[1:], hund[0]], [len(german) - 1])
    with pytest.raises(IndexError, match="2 documents"):
        sources["de/web"].document(2)


def test_the_manifest_counts(tmp_path: Path) -> None:
    manifest = written(tmp_path).manifest
    n = len(ids_of("der Hund")) + len(ids_of("Hund"))
    assert manifest["languages"]["de"] == {"documents": 2, "tokens": n}
    assert manifest["domains"]["text"]["documents"] == 1
    assert (manifest["format"], manifest["dtype"]) == (1, "<u2")
    assert manifest["tokenizer"]["end_token"] == "<|endoftext|>"
    counts = json.loads((tmp_path / "shards" / "counts.json").read_text())
    assert (counts["in"], counts["kept"], counts["dropped"]) == (5, 4, {"empty": 1})
    assert {name: one["kept"] for name, one in counts["by_language"].items()} == {
        "de": 2, "en": 1, "unknown": 1,
    }  # fmt: skip
    tokens = {name: one["tokens_kept"] for name, one in counts["by_language"].items()}
    assert tokens == {name: one["tokens"] for name, one in manifest["languages"].items()}
    assert counts["tokens_kept"] == sum(tokens.values())
    assert counts["characters_in"] == sum(
        one["characters_kept"] for one in counts["by_language"].values()
    )
    assert not (tmp_path / "shards" / "records").exists()
    assert not (tmp_path / "shards.unfinished").exists()


def test_a_special_token_in_a_document_is_text_unless_it_is_asked_for(tmp_path: Path) -> None:
    end = join([written(tmp_path)])["unknown/text"].document(0).tolist()
    assert end.count(0) == 1 and end[-1] == 0
    read = (
        join([written(tmp_path / "again", read_special=True)])["unknown/text"].document(0).tolist()
    )
    assert read.count(0) == 2


def test_processes_change_nothing(tmp_path: Path) -> None:
    fim = FimSettings(rate=1.0)
    one, two = (written(tmp_path / str(n), processes=n, fim=fim, seed=3) for n in (1, 2))
    assert one.manifest["sources"] == two.manifest["sources"]
    assert one.manifest["sources"]["en/code"]["fim"] == 1


def test_wide_ids_for_a_large_vocabulary() -> None:
    from pretrain.data.shard_files import dtype_for

    assert (dtype_for(65_536), dtype_for(65_537)) == ("<u2", "<u4")


@pytest.mark.parametrize("kind", ["ids", "offsets"])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    shards = written(tmp_path)
    path = shards.folder / "de" / "web" / f"00001.{kind}"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    Shards.open(shards.folder, verify=False)
    with pytest.raises(UsageError, match=rf"de/web/00001\.{kind} .*checksum"):
        Shards.open(shards.folder)
    path.write_bytes(data[:-1])
    with pytest.raises(UsageError, match=rf"00001\.{kind} .* bytes, not"):
        Shards.open(shards.folder, verify=False)
    path.unlink()
    with pytest.raises(UsageError, match="missing"):
        Shards.open(shards.folder, verify=False)


def test_another_format_and_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenised shards"):
        Shards.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="format 99"):
        Shards.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"for')
    with pytest.raises(UsageError, match="damaged"):
        Shards.open(tmp_path)


def test_another_tokenizer_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    shards = written(tmp_path)
    shards.check_tokenizer(tokenizer_folder())
    train_tokenizer(["other words"] * 9, vocab_size=280).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"id 280 is '<\|fim_prefix\|>' in .*shards/tokenizer"):
        shards.check_tokenizer(tmp_path / "other")
    other = write_shards(
        tmp_path / "documents",
        tmp_path / "others",
        ShardSettings(tokenizer=str(tmp_path / "other")),
    )
    with pytest.raises(UsageError, match="another tokenizer"):
        join([shards, other])


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = written(tmp_path / "whole").manifest["sources"]
    documents = write_documents(tmp_path / "documents", DOCUMENTS)
    bad = documents / "00001.jsonl.gz"
    good, broken = bad.read_bytes(), bad.read_bytes()[:-12]
    bad.write_bytes(broken)
    settings = ShardSettings(tokenizer=str(tokenizer_folder()))
    with pytest.raises(RunError, match=r"00001\.jsonl\.gz, line \d: no document"):
        write_shards(documents, tmp_path / "shards", settings)
    assert not (tmp_path / "shards").exists()
    left = [path.name for path in (tmp_path / "shards.unfinished").rglob("*.ids")]
    assert left == ["00000.ids"] * 2
    with pytest.raises(UsageError, match="other settings"):
        write_shards(
            documents,
            tmp_path / "shards",
            ShardSettings(tokenizer=str(tokenizer_folder()), read_special=True),
        )
    bad.write_bytes(good)
    shards = write_shards(documents, tmp_path / "shards", settings)
    assert "1 of 2 files are done already" in capsys.readouterr().err
    assert shards.manifest["sources"] == whole
    Shards.open(shards.folder)


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The kernel's limit on file sizes fails a write as a full disk does."""
    texts = [{"text": "x" * 50_000, "language": "de", "domain": "web"}] * 4
    documents = write_documents(tmp_path / "documents", [DOCUMENTS[0], texts])
    settings = ShardSettings(tokenizer=str(tokenizer_folder()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="can't tokenise .*00001.*too large.*same command"):
            write_shards(documents, tmp_path / "shards", settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "shards").exists()
    assert not list((tmp_path / "shards.unfinished").rglob("00001.*"))
    Shards.open(write_shards(documents, tmp_path / "shards", settings).folder)


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path) -> None:
    settings = ShardSettings(tokenizer=str(tokenizer_folder()))
    with pytest.raises(UsageError, match="no documents"):
        write_shards(tmp_path, tmp_path / "shards", settings)
    documents = write_documents(tmp_path / "documents", DOCUMENTS)
    for bad, said in (
        ({"end_token": "<end>"}, "'<end>'"),
        ({"fim": FimSettings(tokens=("<a>", "<b>", "<c>"))}, "'<a>' "),
        ({"tokenizer": str(tmp_path)}, "no tokenizer.json"),
    ):
        with pytest.raises(UsageError, match=said):
            write_shards(
                documents,
                tmp_path / "shards",
                ShardSettings(**{"tokenizer": str(tokenizer_folder()), **bad}),
            )
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]
    written(tmp_path)
    with pytest.raises(UsageError, match="exists"):
        write_shards(documents, tmp_path / "shards", settings)


@pytest.mark.parametrize("name", ["../up", "a b", "", "x" * 65])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    documents = write_documents(tmp_path / "in", [[{"text": "a", "domain": name or "/"}]])
    with pytest.raises(RunError, match=r"00000\.jsonl\.gz, line 1: .* is no name"):
        write_shards(
            documents, tmp_path / "shards", ShardSettings(tokenizer=str(tokenizer_folder()))
        )
    with pytest.raises(UsageError, match="domain: String should match"):
        ShardSettings(tokenizer="x", domain=name)


def test_sources_have_their_tokens(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, {"en/web": 1200, "de/web": 600})
    assert shards.tokens == 1800
    end = join([shards])["de/web"].read(0, 600)[0]
    assert np.flatnonzero(end == 0).tolist() == list(range(11, 600, 12))
