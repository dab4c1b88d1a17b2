"""Repeated lines and repeated spans: what is cut, what stays, on any bound of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import repeated_spans
from pretrain.data.repeated_lines import RepeatedLines
from pretrain.data.repeated_spans import RepeatedSpans
from pretrain.errors import UsageError
from tests.pretrain.documents import row, run, words


def text(seed: int, n: int = 30) -> str:
    return " ".join(words(seed, n))


def test_lines_that_many_documents_have_go_everywhere(tmp_path: Path) -> None:
    rows = [row(f"Home | About\n{text(i)}\nPage {i} of 9\n{text(99)}", str(i)) for i in range(4)]
    rows.append(row(f"{text(8)}\nHOME, about!", "5"))
    rows.append(row(f"{text(9)}\n{text(9)}\n{text(9)}\n{text(9)}", "6"))  # within one document
    kept, _, counts = run(RepeatedLines(minimum=5), rows, tmp_path)
    tail = f"Page {{}} of 9\n{text(99)}"
    assert [one["text"] for one in kept] == [
        *(f"{text(i)}\n{tail.format(i)}" for i in range(4)),
        text(8),
        rows[5]["text"],
    ]
    assert counts["kept"] == 6
    kept, _, _ = run(RepeatedLines(minimum=4), rows, tmp_path / "four")
    assert [one["text"] for one in kept] == [*map(text, range(4)), text(8), rows[5]["text"]]


def test_a_document_of_boilerplate_alone_goes(tmp_path: Path) -> None:
    rows = [row("Cookie notice\nAccept", str(i)) for i in range(3)] + [row(text(1), "3")]
    kept, rejected, counts = run(RepeatedLines(minimum=3), rows, tmp_path)
    assert [one["id"] for one in kept] == ["3"]
    assert counts["dropped"] == {"repeated_lines": 3}
    assert rejected[0]["text"] == "Cookie notice\nAccept"  # as it came


def test_paragraphs_and_hosts(tmp_path: Path) -> None:
    notice = f"{text(5)}\n{text(6)}"
    rows = [
        row(f"{text(i)}\n\n{notice}", str(i), url=f"https://{host}/{i}")
        for i, host in enumerate(["a.org", "www.a.org", "b.org", "b.org"])
    ]
    kept, _, _ = run(RepeatedLines(minimum=2, unit="paragraph", across="hosts"), rows, tmp_path)
    assert [one["text"] for one in kept] == [text(i) for i in range(4)]
    settings: dict[str, Any] = dict(minimum=3, unit="paragraph", across="hosts")
    kept, _, _ = run(RepeatedLines(**settings), rows, tmp_path / "three")
    assert kept == rows


def naive(texts: list[str], length: int) -> list[str]:
    """The definition: byte by byte, over every pair of places."""
    firsts: dict[bytes, int] = {}
    left, start = [], 0
    for data in (one.encode() for one in texts):
        gone = set[int]()
        for i in range(len(data) - length + 1):
            window = data[i : i + length]
            first = firsts.setdefault(window, start + i)
            if start + i >= first + length:
                gone.update(range(i, i + length))
        left.append(bytes(byte for i, byte in enumerate(data) if i not in gone).decode())
        start += len(data)
    return left


PIECES = [text(i, 9)[:40] for i in range(4)] + ["x", "ab", "-" * 50]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), max_size=6))
def test_spans_are_those_of_the_definition_on_any_bound(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    rows = [row(one, str(i)) for i, one in enumerate(texts)]
    stage = RepeatedSpans(length=32, min_left=0)
    expected = naive(texts, 32)
    for width in (48, 2**40):  # bytes taken for each byte: chunks of everything, of one anchor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repeated_spans, "_BYTES_PER_BYTE", width)
            kept, _, _ = run(stage, rows, tmp_path_factory.mktemp("spans"))
        assert [one["text"] for one in kept] == expected


def test_a_planted_span_is_cut_where_it_comes_again_and_at_whole_characters(tmp_path: Path) -> None:
    notice = "äöü€" * 30  # 270 bytes
    rows = [row(f"{text(1)}X{notice}Y{text(2)}", "a"), row(f"{text(3)}Z{notice}W{text(4)}", "b")]
    rows.append(row(notice, "c"))
    rows.append(row(text(5) + notice[:60], "d"))  # 135 bytes: too short
    kept, rejected, counts = run(RepeatedSpans(), rows, tmp_path)
    assert [one["text"] for one in kept] == [
        rows[0]["text"],
        f"{text(3)}ZW{text(4)}",
        rows[3]["text"],
    ]
    assert [one["id"] for one in rejected] == ["c"]
    assert counts["dropped"] == {"repeated_spans": 1}


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=20))
def test_unrelated_texts_are_never_touched(
    tmp_path_factory: pytest.TempPathFactory, seeds: set[int]
) -> None:
    rows = [row(text(seed, 5 + seed % 90), str(seed)) for seed in seeds]
    for stage in (RepeatedSpans(length=32), RepeatedLines(minimum=2)):
        kept, _, _ = run(stage, rows, tmp_path_factory.mktemp("unrelated"))
        assert kept == rows


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (RepeatedLines(minimum=1), "minimum is 1"),
        (RepeatedLines(unit="word"), "line or paragraph"),
        (RepeatedLines(across="pages"), "documents or hosts"),
        (RepeatedLines(min_left=20), "min_left is 20"),
        (RepeatedSpans(length=8), "at least 32 bytes"),
        (RepeatedSpans(min_left=-1), "min_left is -1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, stage: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(stage, [row("x", "a")], tmp_path)
