"""Near duplicates: shingles, the estimator beside the exact value, planted pairs, memory bounds."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.near_duplicates import Clusters, NearDuplicates, signatures_of
from pretrain.data.shingles import jaccard, shingles_of
from pretrain.errors import UsageError
from tests.pretrain.documents import row, run, words


def plain_shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The definition, word by word."""
    found = re.findall(r"[^\W_]+", text.lower())
    n = min(n, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} if n else set()


ALPHABET = "ab Ä€.-_\n9“\x00"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=60), min_size=1, max_size=6), st.integers(1, 4))
def test_shingles_are_those_of_the_definition(texts: list[str], n: int) -> None:
    """As many, equal where they are equal; whatever else is in the batch."""
    plain = [plain_shingles(text, n) for text in texts]
    hashed = shingles_of(texts, n)
    assert [len(one) for one in hashed] == [len(one) for one in plain]
    for i in range(len(texts)):
        assert np.array_equal(hashed[i], shingles_of([texts[i]], n)[0])
        for j in range(i):
            either = len(plain[i] | plain[j])
            expected = len(plain[i] & plain[j]) / either if either else 0.0
            assert jaccard(hashed[i], hashed[j]) == expected


def test_scripts_without_spaces_are_compared_by_character() -> None:
    one, other = shingles_of(["今日は天気がいいですね", "明日は天気がいいですね。"], 5)
    assert jaccard(one, other) == 6 / 8  # 7 of 5 each of 11 characters, the first differs


def test_the_estimate_is_the_jaccard_similarity() -> None:
    """Of 400 pairs at each similarity, with 112 hashes: a mean within 0.01 of the exact one."""
    rng = np.random.default_rng(0)
    for shared, alone in ((160, 20), (100, 50), (40, 80)):
        exact = shared / (shared + 2 * alone)
        sets = rng.integers(0, 2**64, (400, shared + 2 * alone), np.uint64)
        one = signatures_of([np.sort(s[: shared + alone]) for s in sets], 112, 1)
        other = signatures_of([np.sort(s[alone:]) for s in sets], 112, 1)
        estimates = (one == other).mean(1)
        assert estimates.mean() == pytest.approx(exact, abs=0.01)
        assert estimates.std() <= 1.15 * (exact * (1 - exact) / 112) ** 0.5


def changed(text: list[str], at: list[int], seed: int) -> list[str]:
    return [words(seed + i, 1)[0] if i in at else word for i, word in enumerate(text)]


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    """200 texts of 300 words; 100 of them again with 1 to 3 words changed, 50 with 15 changed:
    296 shingles, of which each change takes 5, so J = 281/311 = 0.904 at 3, 0.596 at 15."""
    texts = [words(seed, 300) for seed in range(200)]
    rows = [row(" ".join(text), f"t{i}") for i, text in enumerate(texts)]
    for i in range(100):
        at = [20 + 90 * j for j in range(1 + i % 3)]
        rows.append(row(" ".join(changed(texts[i], at, 10_000 + i)), f"near{i}"))
    for i in range(100, 150):
        at = list(range(10, 300, 20))
        rows.append(row(" ".join(changed(texts[i], at, 20_000 + i)), f"far{i}"))
    random.Random(1).shuffle(rows)
    kept, rejected, counts = run(NearDuplicates(), rows, tmp_path, per_shard=99)
    assert counts["dropped"] == {"near_duplicate": 100}
    place = {one["id"]: i for i, one in enumerate(rows)}
    for one in rejected:
        why = one["metadata"]
        number = re.sub(r"\D", "", one["id"])
        assert {one["id"], why["duplicate_of"]} == {f"t{number}", f"near{number}"}
        assert place[why["duplicate_of"]] < place[one["id"]]
        n = 5 * (1 + int(number) % 3)
        assert why["similarity"] == round((296 - n) / (296 + n), 4)
    assert [one for one in rows if one in kept] == kept  # untouched, in order


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=30))
def test_unrelated_texts_are_never_touched(
    tmp_path_factory: pytest.TempPathFactory, seeds: set[int]
) -> None:
    rows = [row(" ".join(words(seed, 5 + seed % 60)), str(seed)) for seed in seeds]
    kept, _, _ = run(NearDuplicates(), rows, tmp_path_factory.mktemp("unrelated"))
    assert kept == rows


def test_equal_short_texts_are_duplicates_and_texts_without_words_are_not(tmp_path: Path) -> None:
    rows = [
        row(text, str(i)) for i, text in enumerate(["Two words", "...", "two  words!", "", "…"])
    ]
    kept, rejected, _ = run(NearDuplicates(), rows, tmp_path)
    assert [one["id"] for one in kept] == ["0", "1", "3", "4"]
    assert rejected[0]["metadata"]["similarity"] == 1.0


def test_a_small_bound_on_memory_finds_the_same(tmp_path: Path) -> None:
    rows = [row(" ".join(words(i // 2, 40)), str(i)) for i in range(2000)]
    settings = dict(threshold=0.9, rows=2)  # 0.4 MB of band keys: two parts at 1 MB
    for memory in (1, 256):
        stage = NearDuplicates(memory_mb=memory, **settings)  # type: ignore[arg-type]
        kept, _, _ = run(stage, rows, tmp_path / str(memory), per_shard=999)
        assert kept == rows[::2]


def test_a_band_that_hundreds_share_does_not_cost_its_square(tmp_path: Path) -> None:
    """500 equal texts: each meets the first, so each costs one comparison of clusters."""
    rows = [row(" ".join(words(7, 50)), str(i)) for i in range(500)]
    kept, _, _ = run(NearDuplicates(), rows, tmp_path, per_shard=100)
    assert [one["id"] for one in kept] == ["0"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_clusters_do_not_depend_on_the_order_of_pairs(pairs: list[tuple[int, int]]) -> None:
    forward, backward = Clusters(20), Clusters(20)
    for a, b in pairs:
        forward.join(a, b)
    for a, b in reversed(pairs):
        backward.join(b, a)
    firsts = [forward.first(i) for i in range(20)]
    assert firsts == [backward.first(i) for i in range(20)]
    assert all(first <= i and firsts[first] == first for i, first in enumerate(firsts))
    assert all(firsts[a] == firsts[b] for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": 0}, "above 0"),
        ({"rows": 0}, "rows"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(NearDuplicates(**settings), [row("x", "a")], tmp_path)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
