"""Evaluation items in training text: verbatim, reformatted, rephrased; and what is not one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import envs
from data_gen.filters import first_reason, read_filters
from envs.contamination import Index, row_text
from envs.files import read
from posttrain.errors import UsageError
from posttrain.evaluation.decontaminate import decontaminate

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "gsm8k_test.jsonl.gz").is_file(), reason="no public data beside the repository"
)
ITEM = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total "
    "does it take?"
)
SHORT = "Which planet is the largest one?"
INDEX = Index.of({"quiz": [ITEM, SHORT, "What is it?"]})


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        (f"Before. {ITEM} After.", "words"),
        (ITEM.upper().replace(" ", "\n").replace(".", " ;"), "words"),
        (ITEM.replace("fiber", "fi-\nber").replace("bolts", "bo lts"), "letters"),
        ("A red robe takes 3 bolts of blue fiber and half that white fiber. So how many bolts "
         "in total does it need?", "near"),
        (f"Tell me: {SHORT}", "words"),
    ],
)  # fmt: skip
def test_an_item_is_found(text: str, sign: str) -> None:
    match = INDEX.find(text)
    assert match is not None
    assert match.sign == sign
    assert match.reason.startswith("contains quiz item ")


@pytest.mark.parametrize(
    "text",
    [
        "What is it? It is a robe.",
        "A robe takes 2 bolts.",
        "Which planet is the smallest one?",
        "How many bolts does it take to build a bridge in half that time, in total, of blue steel?",
        "",
    ],
)
def test_what_only_shares_words_is_not(text: str) -> None:
    assert INDEX.find(text) is None


def rephrased(text: str, rng: random.Random) -> str:
    """A tenth of the words replaced, some left out: what a light rewrite does."""
    words = []
    for word in text.split():
        chance = rng.random()
        if chance < 0.1:
            words.append(rng.choice(["the", "some", "big", "then", "Mary", "really"]))
        elif chance > 0.03 + 0.1:
            words.append(word)
    return " ".join(words)


@needs_data
def test_planted_leaks_are_found_and_unrelated_text_is_not() -> None:
    items = [str(row["question"]) for row in read(str(DATA / "gsm8k_test.jsonl.gz"))]
    index = Index.of({"gsm8k": items})
    rng = random.Random(0)
    assert all(index.find(f"Here: {item} Solve it.") for item in items[:400])
    found = sum(index.find(rephrased(item, rng)) is not None for item in items[:400])
    assert found >= 0.95 * 400
    unrelated = [str(row["chosen"]) for row in read(str(DATA / "hh_harmless_test.jsonl.gz"))]
    false_alarms = sum(index.find(text) is not None for text in unrelated)
    assert false_alarms <= 0.001 * len(unrelated)


def test_the_command_keeps_what_it_removes_with_the_reason(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": ITEM}]}, {"prompt": "Hello there, you."}]
    data, quiz = tmp_path / "train.jsonl", tmp_path / "quiz.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz.write_text(json.dumps({"q": ITEM}) + "\n")
    counts = decontaminate(data, f"quiz={quiz}", tmp_path / "out")
    assert counts == {"rows": 2, "removed": 1, "by_benchmark": {"quiz": 1}}
    assert read(str(tmp_path / "out/clean.jsonl")) == rows[1:]
    (removed,) = read(str(tmp_path / "out/removed.jsonl"))
    assert removed["contamination"]["item"] == ITEM
    assert removed["messages"] == rows[0]["messages"]
    with pytest.raises(UsageError, match="not empty"):
        decontaminate(data, f"quiz={quiz}", tmp_path / "out")


def test_an_environment_leaves_such_rows_out() -> None:
    rows = [{"prompt": ITEM, "answer": "3"}, {"prompt": "Say two.", "answer": "two"}]
    with pytest.warns(UserWarning, match="1 rows left out, the first contains quiz item 0"):
        env = envs.from_tasks(rows, reward="exact", against={"quiz": [ITEM]}, held_out_percent=0)
    assert {env.tasks.train(i).answer for i in range(4)} == {"two"}


def test_generated_data_can_be_filtered() -> None:
    filters = read_filters({"name": "contamination", "against": {"quiz": [ITEM]}})
    row = {"messages": [{"role": "assistant", "content": ITEM}]}
    assert first_reason(filters, row) == "contains quiz item 0 (words)"
    assert first_reason(filters, {"text": "nothing of the kind"}) == ""
    assert row_text({"a": [{"b": ["x", 1, None]}], "c": "y"}) == "x\n\n\ny"
