"""Preference rows: every shape becomes the same pairs, and a bad row is named."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.errors import UsageError
from posttrain.trainers.pairs import Pair, dialogue, read_judged, read_pairs
from posttrain.trainers.preference_data import Cutter, fingerprint, split, with_mismatched

USER = {"role": "user", "content": "2 + 3?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = Pair(1, (USER,), said("5"), said("6"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"},
        {"prompt": [USER], "chosen": [said("5")], "rejected": said("6")},
        {"prompt": None, "label": None, "chosen": [USER, said("5")]}
        | {"rejected": [USER, said("6")], "answers": None, "margin": None},
        {"chosen": [USER, said("5")], "rejected": [USER, said("6")]},
        {
            "chosen": "\n\nHuman: 2 + 3?\n\nAssistant: 5",
            "rejected": "\n\nHuman: 2 + 3?\n\nAssistant: 6 ",
        },
        {"prompt": "2 + 3?", "answers": ["5", "6"]},
        {"prompt": "2 + 3?", "answers": ["6", "5"], "ranks": [2, 1]},
    ],
)
def test_every_shape_is_the_same_pair(row: dict[str, Any]) -> None:
    assert read_pairs([row], "d") == ([PAIR], {})


def test_a_ranking_is_all_its_pairs_and_equal_ranks_are_ties() -> None:
    row = {"prompt": "2 + 3?", "answers": ["a", "b", "c"], "ranks": [2, 1, 2]}
    pairs, _ = read_pairs([row], "d")
    found = [(p.chosen["content"], p.rejected["content"], p.tie) for p in pairs]
    assert found == [("b", "a", False), ("b", "c", False), ("a", "c", True)]
    assert len(read_pairs([{"prompt": "?", "answers": list("abcde")}], "d")[0]) == 10


def test_margins_and_ties_stand_beside_a_pair() -> None:
    row = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}
    (pair,) = read_pairs([row | {"margin": 1.5}], "d")[0]
    assert (pair.margin, pair.tie) == (1.5, False)
    (pair,) = read_pairs([row | {"tie": True}], "d")[0]
    assert (pair.margin, pair.tie) == (0.0, True)


def test_verdicts_come_from_labels_or_from_pairs() -> None:
    labelled = {"prompt": "2 + 3?", "completion": "5", "label": True}
    pair = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}
    tie = pair | {"tie": True}
    found, _ = read_judged([labelled, pair, tie], "d")
    assert [(j.row, j.answer["content"], j.good) for j in found] == [
        (1, "5", True), (2, "5", True), (2, "6", False),
    ]  # fmt: skip


def test_a_dialogue_keeps_colons_and_blank_lines_of_its_own() -> None:
    text = "\n\nHuman: a: b\n\nc\n\nAssistant: d\n\nHuman: e\n\nAssistant:"
    assert dialogue(text) == [
        {"role": "user", "content": "a: b\n\nc"},
        said("d"),
        {"role": "user", "content": "e"},
        said(""),
    ]
    with pytest.raises(ValueError, match="must be turns"):
        dialogue("Once upon a time. \n\nHuman: hi")


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
BAD: list[tuple[Any, str, str]] = [
    ({"prompt": "p", "chosen": "a"}, r"no 'rejected' \(found: \['chosen', 'prompt'\]\)", "missing"),
    ("text", "a row is a mapping, not str", "missing"),
    (GOOD | {"rejected": "a"}, "both answers are 'a'", "equal"),
    (GOOD | {"rejected": " \n"}, "the answer in 'rejected' is empty", "empty"),
    (GOOD | {"margin": "big"}, "'margin' is a number, not 'big'", "bad margin"),
    ({"prompt": "p", "answers": ["a"]}, "at least two answers", "bad ranking"),
    ({"prompt": "p", "answers": ["a", "b"], "ranks": [1]}, "2 answers and 1 ranks", "bad ranking"),
    ({"prompt": "p", "answers": ["a", "b"], "ranks": ["A", 2]}, "are numbers", "bad ranking"),
    (
        {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: y\n\nAssistant: b"},
        "differ before their last answer",
        "different",
    ),
    ({"chosen": "hello", "rejected": "bye"}, "must be turns of 'Human:'", "no dialogue"),
    (GOOD | {"chosen": [USER, said("a")]}, "one message of the assistant", "no answer"),
    (GOOD | {"prompt": [USER, said("a")]}, "'prompt' ends in an assistant's", "no answer"),
    (GOOD | {"prompt": [{"role": "user"}]}, "needs a 'role' and a 'content'", "bad message"),
]


@pytest.mark.parametrize(("row", "message", "kind"), BAD)
def test_a_bad_row_is_named_or_counted(row: Any, message: str, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"pairs\.jsonl, row 2: .*{message}"):
        read_pairs([GOOD, row], "pairs.jsonl")
    pairs, dropped = read_pairs([GOOD, row], "pairs.jsonl", drop_bad=True)
    assert len(pairs) == 1
    assert [name.startswith(kind) for name in dropped] == [True]
    with pytest.raises(UsageError, match="holds no pair of answers"):
        read_pairs([row], "pairs.jsonl", drop_bad=True)


def test_a_verdict_is_true_or_false() -> None:
    with pytest.raises(UsageError, match="'label' is true or false, not 'good'"):
        read_judged([{"prompt": "p", "completion": "a", "label": "good"}], "d")


# tokens


class Words:
    """A tokenizer of words: <u> and <a> open turns, </> ends one."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **_: Any) -> Any:
        text = []
        for message in messages:
            text += [f"<{message['role'][0]}>", *message["content"].split(), "</>"]
        text += ["<a>"] if add_generation_prompt else []
        return {"input_ids": [self.words.setdefault(word, len(self.words)) for word in text]}

    def text(self, ids: list[int]) -> str:
        names = {number: word for word, number in self.words.items()}
        return " ".join(names[i] for i in ids)


def cut(rows: list[dict[str, Any]], limit: int = 100, **more: Any) -> Any:
    pairs, _ = read_pairs(rows, "d")
    words = Words()
    settings = {"too_long": "error", "drop_bad": False} | more
    found = Cutter("d", limit, **settings).pairs(words, pairs)
    named = [{name: words.text(ids) for name, ids in row.items()} for row in found.rows]
    return named, dict(found.counts)


def test_an_answer_begins_behind_the_generation_prompt() -> None:
    rows, _ = cut([{"prompt": "two and two", "chosen": "four", "rejected": "five or so"}])
    assert rows == [
        {
            "prompt_ids": "<u> two and two </> <a>",
            "chosen_ids": "four </>",
            "rejected_ids": "five or so </>",
        }
    ]


LONG = [GOOD, {"prompt": "p", "chosen": "a b c d", "rejected": "e f g"}]  # 4 + 5 tokens


def test_a_long_row_is_an_error_or_dropped_or_cut_at_its_end() -> None:
    with pytest.raises(UsageError, match=r"d, row 2: 9 tokens are over max_length = 7"):
        cut(LONG, 7)
    rows, counts = cut(LONG, 7, too_long="drop")
    assert (len(rows), counts) == (1, {"too long": 1})
    rows, counts = cut(LONG, 7, too_long="truncate")
    assert counts == {"truncated": 1}
    assert rows[1] | {} == {
        "prompt_ids": "<u> p </> <a>", "chosen_ids": "a b c", "rejected_ids": "e f g",
    }  # fmt: skip


def test_what_cutting_makes_unusable_is_left_out_and_counted() -> None:
    same = {"prompt": "p", "chosen": "a b c d", "rejected": "a b c e"}
    rows, counts = cut([GOOD, same], 7, too_long="truncate")
    assert (len(rows), counts) == (1, {"truncated": 1, "equal answers": 1})
    rows, counts = cut([GOOD, GOOD | {"prompt": "p q r s t"}], 7, too_long="truncate")
    assert (len(rows), counts) == (1, {"too long": 1})  # the prompt alone fills it


def test_ties_have_no_better_answer_and_equal_tokens_are_no_pair() -> None:
    rows, counts = cut([GOOD, GOOD | {"tie": True}])
    assert (len(rows), counts) == (1, {"tie": 1})
    with pytest.raises(UsageError, match="row 1: both answers are the same tokens"):
        cut([GOOD | {"rejected": "a "}])


def test_ktos_mismatched_answers_stay_within_the_batch() -> None:
    rows = [{"prompt_ids": [i], "completion_ids": [10 + i], "label": True} for i in range(5)]
    made = with_mismatched(rows, 2, seed=0)
    assert sorted(row["prompt_ids"][0] for row in made) == [0, 1, 2, 3, 4]
    for start in (0, 2, 4):
        batch = made[start : start + 2]
        columns = ("completion_ids", "KL_completion_ids")
        own, others = ({row[column][0] for row in batch} for column in columns)
        assert own == others
        assert len(batch) == 1 or all(r["completion_ids"] != r["KL_completion_ids"] for r in batch)
    assert with_mismatched(rows, 2, seed=0) == made != with_mismatched(rows, 2, seed=1)


def test_a_prompt_is_on_one_side_of_what_is_held_out() -> None:
    rows = [{"prompt": f"p{i % 200}", "chosen": str(i), "rejected": "no"} for i in range(600)]
    pairs, _ = read_pairs(rows, "d")
    train, held_out = split(pairs, 0.2, lambda pair: pair.prompt, seed=0)
    sides = [{pair.prompt[0]["content"] for pair in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(train) + len(held_out) == 600
    assert 0.1 < len(sides[1]) / 200 < 0.3
    assert split(pairs, 0.0, lambda pair: pair.prompt, seed=0) == (pairs, [])


def test_a_fingerprint_sees_every_token_and_the_order() -> None:
    rows = [{"a": [1, 2]}, {"a": [3]}]
    others = [[{"a": [1, 2]}, {"a": [4]}], rows[::-1], rows[:1], [{"a": [1]}, {"a": [2, 3]}]]
    assert len({fingerprint(other) for other in [rows, *others]}) == 5
    assert fingerprint(rows) == fingerprint([dict(row) for row in rows])
