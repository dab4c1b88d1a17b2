"""Search over an index: what is found, in which order, and that no query is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs import UsageError
from envs.search import PAGE_CHARS, Index
from rewards import Outcome
from tests.envs.playing import call, play, told

ROWS = [
    {"id": "cats", "title": "On cats", "text": "Cats sleep most of the day."},
    {"id": "dogs", "title": "On dogs", "text": "Dogs chase cats, and cats chase mice."},
    {"id": "mice", "title": "Mäuse", "text": "Mice eat cheese. " + "word " * 2000},
]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(ROWS)


def ids(index: Index, query: str, k: int = 5) -> list[str]:
    return [one["id"] for one in index.search(query, k)]


def test_better_matches_come_first_and_a_title_counts_more(index: Index) -> None:
    assert len(index) == 3
    assert ids(index, "CATS") == ["cats", "dogs"]
    assert ids(index, "cheese mice") == ["mice", "dogs"]
    assert ids(index, "mause") == ["mice"]  # without its accent
    assert ids(index, "cats", k=1) == ["cats"]
    assert ids(index, "bird") == []
    (best,) = index.search("cheese")
    assert (best["title"], best["snippet"][:16]) == ("Mäuse", "Mice eat cheese.")
    assert best["score"] > 0


@pytest.mark.parametrize(
    "query",
    [
        *('cats" OR "1', "cats AND (", "cats NEAR/3 *", "title:cats", "-cats", "cats^2", "{cats}"),
        *("cats'; DROP TABLE documents; --", "cats\0", "\ud800cats", "cats " * 5000),
    ],
)
def test_a_hostile_query_is_words(index: Index, query: str) -> None:
    assert "cats" in ids(index, query)
    assert len(index) == 3


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_no_query_raises(index: Index, query: str) -> None:
    assert all(one in ("cats", "dogs", "mice") for one in ids(index, query))


def test_an_index_in_a_file_is_used_again_until_the_source_changes(tmp_path: Path) -> None:
    docs, file = tmp_path / "docs", tmp_path / "index"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.md").write_text("# Heading\nalpha")
    (docs / "sub/b.txt").write_text("beta")
    (docs / "c.bin").write_bytes(b"\xff")
    first = Index.build(docs, file)
    assert [one["title"] for one in first.search("alpha")] == ["Heading"]
    assert first.text("sub/b.txt") == "beta"
    before = file.stat().st_ino
    Index.build(docs, file).close()
    assert file.stat().st_ino == before
    (docs / "a.md").write_text("gamma and more")
    assert ids(Index.build(docs, file), "gamma") == ["a.md"]
    assert file.stat().st_ino != before
    assert sorted(os.listdir(tmp_path)) == ["docs", "index"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ([], "no documents"),
        ([{"id": "a", "text": " "}], "document 1: it needs an id and a text"),
        ([{"text": "x"}], "document 1"),
        ([{"id": "a", "text": "x"}] * 2, "two documents have the id 'a'"),
        ("nowhere", "no such data file"),
    ],
)
def test_what_is_no_source(source, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Index.build(source)


def test_a_file_that_is_no_index_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(UsageError, match="is no index"):
        Index.build(ROWS, precious)
    assert precious.read_text().startswith("not a database")


def test_an_episode_of_search() -> None:
    environment = envs.load(
        "search",
        tasks=[{"prompt": "Who eats cheese?", "answer": "mice"}],
        documents=ROWS,
        reward="exact",
        held_out_percent=0,
    )
    found, page, rest, wrong, done = play(
        environment,
        [
            call("search", query="cheese"),
            call("open", id="mice"),
            call("open", id="mice", offset=PAGE_CHARS * 3),
            call("open", id="bird"),
            "mice",
        ],
    )
    assert '"id": "mice"' in told(found)
    assert told(page).endswith(f"[7017 more characters from {PAGE_CHARS}]")
    assert told(rest).strip().endswith("word")
    assert "there is no document 'bird'" in told(wrong)
    assert done.score is not None
    assert done.score.outcome is Outcome.CORRECT
