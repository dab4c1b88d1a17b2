"""Planted evaluation items: all of them found, unrelated text not, and as fine-tuning data is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contamination import Index
from pretrain.data.decontamination import Decontaminate
from pretrain.errors import UsageError
from tests.pretrain.documents import words

ITEMS = [f"{' '.join(words(i, 4 + i % 40)).capitalize()}, how many {i}?" for i in range(150)]


def plain(seed: int, n: int = 200) -> str:
    return " ".join(words(10_000 + seed, n))


def test_every_verbatim_item_is_found_with_its_match() -> None:
    step = Decontaminate({"quiz": ITEMS})
    for i, item in enumerate(ITEMS):
        document = Document(f"{plain(i)}. {item} {plain(i + 500)}", "a")
        assert step.check(document) == "contaminated"
        expected = {"set": "quiz", "item": i, "sign": "words"}
        assert document.metadata["contamination"] == expected


def test_spacing_case_and_hyphens_do_not_hide_an_item() -> None:
    step = Decontaminate({"quiz": ITEMS})
    for i, item in enumerate(ITEMS):
        broken = "".join(f"{letter}-\n" if j % 7 == 6 else letter for j, letter in enumerate(item))
        found = step.find(plain(i) + " " + broken.upper())
        if sum(one.isalnum() for one in item) >= 60:
            assert found == (("quiz", i), "letters")


def test_unrelated_text_raises_no_alarm() -> None:
    """2,000 texts of the words that the items are made of: at most 0.1 % by chance."""
    vocabulary = sorted({word for item in ITEMS for word in item.split()})
    rng = random.Random(0)
    step = Decontaminate({"quiz": ITEMS})
    texts = (" ".join(rng.choices(vocabulary, k=200)) for _ in range(2000))
    assert sum(step.find(text) is not None for text in texts) <= 2


ALPHABET = st.sampled_from(["a", "b", "-", "é", "_", "7 ", "long" * 4])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(ALPHABET, max_size=40).map(" ".join), min_size=1, max_size=3),
    st.lists(ALPHABET, max_size=60).map("".join),
)
def test_both_rules_agree_with_those_for_fine_tuning_data(items: list[str], text: str) -> None:
    """On the items inside the text, too."""
    ours, theirs = Decontaminate({"x": items}), Index.of({"x": items})
    for one in (text, text + items[0], items[-1].replace(" ", "  ") + text):
        found, match = ours.find(one), theirs.find(one)
        if match is None or match.sign == "near":
            assert found is None
        else:
            assert found is not None and found[1] == match.sign


def test_items_of_three_words_are_not_looked_for() -> None:
    assert Decontaminate({"x": ["what is 2"]}).find("what is 2") is None


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    rows = [{"question": ITEMS[40], "label": 3}, {"question": ITEMS[41], "label": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text(f'question,label\n"{ITEMS[40]}",3\n"{ITEMS[41]}",\n')
    (tmp_path / "a.txt").write_text(f"{ITEMS[40]}\n{ITEMS[41]}\n")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in tmp_path.iterdir():
        assert Decontaminate({"x": path}).find(ITEMS[41]) == (("x", 1), "words")


def test_a_set_that_is_not_there_or_empty_or_broken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"n": \n')
    (tmp_path / "broken.parquet").write_text("no")
    for name, message in [
        ("gone.jsonl", "gone.jsonl is not there"),
        ("empty.jsonl", "holds no text"),
        ("broken.jsonl", "can't be read"),
        ("broken.parquet", "can't be read"),
    ]:
        with pytest.raises(UsageError, match=message):
            Decontaminate({"x": str(tmp_path / name)})
    with pytest.raises(UsageError, match="against is empty"):
        Decontaminate({})
