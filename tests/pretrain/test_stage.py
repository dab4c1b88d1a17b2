"""Stages over folders: counts, rejects, once per input, nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import folders, stages
from pretrain.data.duplicates import ExactDuplicates, UrlDuplicates, normal_url
from pretrain.data.spill import KeyFile, Records, groups
from pretrain.data.stage import Decide, Drop, run_stage
from pretrain.errors import RunError, UsageError
from tests.pretrain.documents import row, run

ROWS = [
    row("one", "a", language="en", url="http://www.x.org/p/?utm_source=q&b=2&a=1#top"),
    row("two", "b", language="de", url="https://x.org/p?a=1&b=2"),
    row(" one\n", "c", language="en", url="https://x.org/P?a=1&b=2"),
    row("three", "d"),
    row("one", "e", language="de"),
]


def test_equal_texts_go_but_the_first(tmp_path: Path) -> None:
    kept, rejected, counts = run(ExactDuplicates(), ROWS, tmp_path)
    assert [one["id"] for one in kept] == ["a", "b", "d"]
    assert kept[0] == ROWS[0]
    assert [(one["id"], one["metadata"]["duplicate_of"]) for one in rejected] == [
        ("c", "a"),
        ("e", "a"),
    ]
    assert rejected[0]["metadata"]["reason"] == "duplicate"
    assert rejected[0]["metadata"]["dropped_by"] == "exact_duplicates"
    assert rejected[0]["metadata"]["url"] == "https://x.org/P?a=1&b=2"
    assert json.loads((tmp_path / "out/counts.json").read_text()) == counts
    languages = counts.pop("by_language")
    assert {name: (one["in"], one.get("kept", 0)) for name, one in languages.items()} == {
        **{"en": (2, 1), "de": (2, 1), "unknown": (1, 1)},
    }
    assert not any(isinstance(n, bool) for one in languages.values() for n in one.values())
    assert counts == {
        "stage": "exact_duplicates",
        "in": 5,
        "kept": 3,
        "changed": 0,
        "characters_in": 19,
        "characters_kept": 11,
        "words_kept": 3,
        "dropped": {"duplicate": 2},
        "dropped_words": {"duplicate": 2},
        "examples": {"duplicate": [" one\n", "one"]},
    }


def test_equal_addresses_go_but_the_first_and_no_address_is_no_duplicate(tmp_path: Path) -> None:
    rows = [*ROWS, row("six", "f")]
    kept, rejected, _ = run(UrlDuplicates(), rows, tmp_path)
    assert [one["id"] for one in kept] == ["a", "c", "d", "e", "f"]  # paths know case
    assert [(one["id"], one["metadata"]["duplicate_of"]) for one in rejected] == [("b", "a")]


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://www.Example.org:80/a/?utm_source=x&b=1#top", "example.org/a?b=1"),
        ("https://example.org", "example.org"),
        ("https://example.org/?fbclid=1", "example.org"),
        ("https://example.org:8080/x", "example.org:8080/x"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_what_does_not_change_a_page_is_taken_out_of_its_address(url: str, normal: str) -> None:
    assert normal_url(url) == normal


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 99)), max_size=300))
def test_the_numbers_of_a_key_come_together_however_small_the_memory(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]
) -> None:
    spread = [(key * 0x9E3779B97F4A7C15 % 2**64, number) for key, number in pairs]
    expected: dict[int, list[int]] = {}
    for key, number in spread:
        expected.setdefault(key, []).append(number)
    for memory in (256, 2**20):  # bytes: many parts, one part
        keys = KeyFile(tmp_path_factory.mktemp("keys") / "k", memory=memory)
        for key, number in spread:
            keys.add(np.array([key], np.uint64), np.array([number], np.uint64))
        found = [
            group.tolist()
            for sorted_keys, numbers in keys.repeated()
            for group in groups(sorted_keys, numbers)
        ]
        assert sorted(found) == sorted(many for many in expected.values() if len(many) > 1)


def test_a_bound_that_is_too_tight_says_what_would_do(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "k", memory=1000)
    keys.add(np.arange(10_000, dtype=np.uint64), np.arange(10_000, dtype=np.uint64))
    with pytest.raises(UsageError, match="memory_mb must be at least 1 for this many"):
        next(keys.repeated())


def test_records_come_back_by_number(tmp_path: Path) -> None:
    records = Records(tmp_path / "r")
    for text in (b"one", b"", b"three"):
        records.append(text)
    assert [records[i] for i in (2, 1, 0)] == [b"three", b"", b"one"]
    records.append(b"four")
    assert records[3] == b"four" and len(records) == 4


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    _, _, counts = run(ExactDuplicates(), ROWS, tmp_path)
    shard = tmp_path / "out/00000.jsonl.gz"
    before = shard.stat().st_mtime_ns
    assert run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out", rejects=True) == counts
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other settings"):
        run_stage(ExactDuplicates(memory_mb=1), tmp_path / "in", tmp_path / "out", rejects=True)
    folders.write_documents(tmp_path / "other", [*ROWS[:-1], row("onE", "e")], per_shard=3)
    with pytest.raises(UsageError, match="from other documents"):
        run_stage(ExactDuplicates(), tmp_path / "other", tmp_path / "out", rejects=True)


def test_the_same_documents_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        run(ExactDuplicates(), ROWS, tmp_path / name)
    x, y = (sorted((tmp_path / name / "out").iterdir()) for name in ("x", "y"))
    assert [one.read_bytes() for one in x] == [one.read_bytes() for one in y]


KILLED = """
import os, signal, sys
from pathlib import Path
from pretrain.data import stage
from pretrain.data.duplicates import ExactDuplicates

class Killed(ExactDuplicates):
    def prepare(self, source, scratch):
        decide = super().prepare(source, scratch)
        def late(number, row):
            if number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return decide(number, row)
        return late

stage.run_stage(Killed(), Path("in"), Path("out"), rejects=True)
"""


def test_a_killed_stage_leaves_nothing_under_a_final_name_and_runs_again(tmp_path: Path) -> None:
    folders.write_documents(tmp_path / "in", ROWS, per_shard=3)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"in", ".out.unfinished", ".out.rejects.unfinished"}
    counts = run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out", rejects=True)
    assert counts["kept"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "out.rejects"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.jsonl.gz",
        "00001.jsonl.gz",
        "counts.json",
        "stage.json",
    ]


def test_a_folder_that_no_stage_finished_is_refused(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=match):
            run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("in is not a folder")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    refused("is no output of a stage")
    with gzip.open(tmp_path / "in/00000.jsonl.gz", "wt") as shard:
        shard.write('{"id": "a"}\n')
    refused(r"has no counts\.json")


@pytest.mark.parametrize(
    ("line", "match"),
    [('{"id": "a"}', "line 1: no document"), ('{"text": "t"}', "line 1: a document without id")],
)
def test_what_is_no_document_is_named(tmp_path: Path, line: str, match: str) -> None:
    folders.write_documents(tmp_path / "in", ROWS[:1])
    with gzip.open(tmp_path / "in/00000.jsonl.gz", "wt") as shard:
        shard.write(line)
    with pytest.raises(RunError, match=rf"00000\.jsonl\.gz, {match}"):
        run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    folders.write_documents(tmp_path / "in", ROWS * 50)
    shard = tmp_path / "in/00000.jsonl.gz"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"00000\.jsonl\.gz, line \d+: no document"):
        run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    folders.write_documents(tmp_path / "in", ROWS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        run_stage(ExactDuplicates(), tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_step_changes_what_is_kept_and_the_reject_is_as_it_came(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Shorten:
        name = "shorten"

        def prepare(self, source: Path, scratch: Path) -> Decide:
            def decide(number: int, row: folders.Row) -> Drop | None:
                row["text"] = row["text"][1:]
                return Drop("even") if number % 2 == 0 else None

            return decide

    kept, rejected, counts = run(Shorten(), ROWS[:2], tmp_path)
    assert (kept[0]["text"], rejected[0]["text"]) == ("wo", "one")
    assert (counts["characters_in"], counts["characters_kept"]) == (6, 2)
    assert counts["examples"] == {"even": ["one"]}


def test_stages_have_a_function_for_configurations(tmp_path: Path) -> None:
    folders.write_documents(tmp_path / "in", ROWS)
    counts = stages.exact_duplicates(tmp_path / "in", tmp_path / "a", {"rejects": True})
    assert counts["kept"] == 3 and (tmp_path / "a.rejects").is_dir()  # type: ignore[index]
    for name in ("url_duplicates", "near_duplicates", "repeated_lines", "repeated_spans"):
        getattr(stages, name)(tmp_path / "a", tmp_path / name, {"memory_mb": 8})
        assert json.loads((tmp_path / name / "counts.json").read_text())["stage"] == name
    with pytest.raises(UsageError, match="NearDuplicates:.*treshold"):
        stages.near_duplicates(tmp_path / "in", tmp_path / "b", {"treshold": 0.9})
