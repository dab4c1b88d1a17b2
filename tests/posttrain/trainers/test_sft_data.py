"""What becomes of rows before training: shares of a mix, dropped and cut rows, evaluation text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import UsageError
from posttrain.trainers.examples import Examples, make_examples
from posttrain.trainers.masks import Renderer
from posttrain.trainers.mixing import mixed, pass_size
from posttrain.trainers.preview import report_lines
from posttrain.trainers.sft_settings import SftSettings
from tests.posttrain.trainers.chat_families import tokenizer_of


def row(asked: str, said: str) -> dict[str, Any]:
    return {"prompt": asked, "completion": said}


def examples(
    rows: list[dict[str, Any]], family: str = "chatml", limit: int = 1000, **settings: Any
) -> Examples:
    renderer = Renderer(tokenizer_of(family))
    return make_examples({"rows": rows}, renderer, SftSettings(**settings), limit)


# mixing


@given(
    shares=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 30), min_size=4, max_size=4),
    seed=st.integers(0, 3),
)
def test_every_beginning_of_a_mix_has_its_shares(
    shares: list[float], sizes: list[int], seed: int
) -> None:
    names = "abcd"[: len(shares)]
    weights, rows = dict(zip(names, shares, strict=True)), dict(zip("abcd", sizes, strict=True))
    order = mixed(rows, weights, 60, seed)
    for n in (1, 10, 37, 60):
        for name in names:
            taken = sum(source == name for source, _ in order[:n])
            assert abs(taken - n * weights[name] / sum(shares)) < len(names)
    assert mixed(rows, weights, 25, seed) == order[:25]


@given(size=st.integers(1, 12), seed=st.integers(0, 3))
def test_each_pass_over_a_source_holds_every_row_once(size: int, seed: int) -> None:
    order = [row for _, row in mixed({"a": size}, {"a": 1.0}, 3 * size, seed)]
    for start in range(0, 3 * size, size):
        assert sorted(order[start : start + size]) == list(range(size))


def test_a_pass_is_a_pass_over_the_largest_share() -> None:
    sizes, shares = {"task": 850, "general": 9000}, {"task": 0.85, "general": 0.15}
    assert pass_size(sizes, shares) == 1000
    order = mixed(sizes, shares, 1000, seed=0)
    assert len({row for name, row in order if name == "task"}) == 850
    assert sum(name == "general" for name, _ in order) == 150
    assert mixed(sizes, shares, 100, seed=1) != order[:100]
    with pytest.raises(UsageError, match="no example is left of b"):
        mixed({"a": 3, "b": 0}, {"a": 1.0, "b": 1.0}, 3, seed=0)


# evaluation sets


def test_contaminated_rows_are_an_error_or_dropped(tmp_path: Path) -> None:
    rows = [row(f"How much is {n} and one more?", str(n + 1)) for n in range(9)]
    held_out = tmp_path / "held_out.jsonl"
    questions = (f"how much is {n} and one more" for n in (3, 7))
    held_out.write_text("".join(f'{{"prompt": "{asked}"}}\n' for asked in questions))
    against = {"sums": str(held_out)}
    message = r"rows, row 4 contains sums item 0 \(words\): 'how much is 3 .*Rows like it: 4, 8\. "
    with pytest.raises(UsageError, match=message):
        examples(rows, against=against)
    kept = examples(rows, against=against, contaminated="drop")
    assert [example.row for example in kept.rows] == [1, 2, 3, 5, 6, 7, 9]
    assert kept.report()["contaminated"] == {"sums": 2}
    assert kept.report()["dropped_contaminated"] == 2
    with pytest.raises(UsageError, match=r"no such data file: .*none\.jsonl"):
        examples(rows, against={"sums": str(tmp_path / "none.jsonl")})


# rows


def test_the_report_counts_lengths_and_what_was_dropped() -> None:
    """ChatML: "<|im_start|>", "user\\n", the text, "<|im_end|>", "\\n", and so again."""
    rows = [row("1", "2"), row("1", "2"), row("1", "1111"), row("1", "1" * 20)]
    report = examples(rows, too_long="drop", limit=15, duplicates="drop").report()
    assert report["length"] == {"p50": 13, "p90": 14, "p99": 14, "mean": 13.5, "max": 15}
    assert (report["examples"], report["trained_tokens"], report["tokens"]) == (2, 7, 27)
    assert (report["duplicates"], report["dropped_duplicates"]) == (1, 1)
    assert (report["dropped_too_long"], report["truncated"]) == (1, 0)
    assert report["formats"] == {"rows": ["prompt-completion"]}
    assert "1 dropped, longer than max_length" in report_lines(report)
    assert len(examples(rows).rows) == 4


def test_long_rows_are_cut_only_where_asked() -> None:
    rows = [row("1", "2"), row("1", "1" * 20), row("1" * 20, "2")]
    with pytest.raises(UsageError, match=r"rows, row 2: 31 tokens, more than .* \(15\)"):
        examples(rows, limit=15)
    cut = examples(rows, limit=15, too_long="truncate")
    assert [len(example.token_ids) for example in cut.rows] == [12, 15]
    assert sum(cut.rows[1].trained) == 6
    report = cut.report()
    assert (report["truncated"], report["dropped_nothing_left"]) == (2, 1)


def test_rows_that_cannot_be_used_are_named_or_counted() -> None:
    two = {"messages": [*({"role": "user", "content": c} for c in "ab")]}
    two["messages"].append({"role": "assistant", "content": "c"})
    rows = [row("1", "2"), {"text": "hi"}, two, row("1", " ")]
    with pytest.raises(UsageError, match="rows, row 2: no 'messages'"):
        examples([rows[0], rows[1]], family="gemma", bad_rows="error")
    with pytest.raises(UsageError, match=r"rows, row 2: the chat template refuses.*user: 'b'"):
        examples([rows[0], two], family="gemma")
    kept = examples(rows, family="gemma", bad_rows="drop")
    assert (len(kept.rows), kept.counts["dropped_unusable"]) == (1, 3)
    with pytest.raises(UsageError, match="no example is left of rows"):
        examples([two], family="gemma", bad_rows="drop")


def test_thoughts_in_several_turns_can_be_split_into_examples() -> None:
    said = ["<think>\nx\n</think>\n\nA", "<think>\ny\n</think>\n\nB"]
    messages = [
        {"role": role, "content": content}
        for pair in zip("ab", said, strict=True)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    tokenizer = tokenizer_of("qwen3")
    together = examples([{"messages": messages}], family="qwen3")
    assert len(together.rows) == 1 and together.report()["thoughts_left_out"] == 1
    split = examples([{"messages": messages}], family="qwen3", thinking="split")
    learnt = [
        tokenizer.decode([t for t, on in zip(e.token_ids, e.trained, strict=True) if on])
        for e in split.rows
    ]
    assert learnt == [f"{text}<|im_end|>" for text in said]
    assert "x" not in tokenizer.decode(split.rows[1].token_ids)
    assert split.report()["thoughts_left_out"] == 0
