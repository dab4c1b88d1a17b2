"""`posttrain audit judge`: pairs in, agreement and biases out."""

import argparse
import asyncio
import gzip
import json
from pathlib import Path

import pytest

from rewards import UsageError
from rewards.judge import Comparison, command, load
from rewards.judge.audit import Judged, audit, measure, table
from rewards.judge.pairs import Pair, read_pairs
from tests.rewards.judge_server import MODEL, JudgeServer

HH = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hh_harmless_test.jsonl.gz"


def longest(asked):
    first, second = len(asked.text("first")), len(asked.text("second"))
    return asked.verdict(
        better="tie" if first == second else "first" if first > second else "second"
    )


def both(winner, other=None):
    verdicts = (winner, other or winner)
    return Comparison(winner if verdicts[0] == verdicts[1] else "tie", verdicts)


def test_the_measurements_by_hand():
    judged = [
        Judged(Pair("p", "aaaa", "b"), both("a"), (both("a"), both("a", "tie"))),
        Judged(Pair("p", "aaa", "b"), both("b")),  # the shorter one, against the label
        Judged(Pair("p", "a", "bb"), both("a", "b")),  # what stood first, both times
        Judged(Pair("p", "a", "b", tie=True), both("tie")),
        Judged(Pair("p", "aa", "bb"), Comparison(None, ("a", None))),
    ]
    result = measure(judged)
    shares = {name: (one["share"], one["of"]) for name, one in result.items() if "share" in one}
    assert shares == {
        "agreement": (0.5, 4),  # pairs 0 and 3 of the 4 judged
        "agreement_decided": (0.5, 2),  # pair 0 of 0 and 1
        "first_wins": (round(5 / 7, 4), 7),  # 1 + 1 + 2 + 0 + 1 of 2 + 2 + 2 + 0 + 1
        "flipped": (0.25, 4),
        "longer_wins": (0.5, 6),  # 2 of pair 0, none of pair 1, 1 of pair 2
        "longer_labels": (round(2 / 3, 4), 3),
        "self_consistency": (0.75, 4),
        "unjudged": (0.2, 5),
    }
    by_length = {name: one["of"] for name, one in result["agreement_by_length"].items()}
    assert by_length == {"under half": 0, "shorter": 1, "alike": 1, "longer": 0, "over twice": 2}


def test_an_interval_holds_the_share_and_narrows():
    def interval(n):
        judged = [Judged(Pair("p", "aa", "b"), both("a" if i % 4 else "b")) for i in range(n)]
        return measure(judged)["agreement"]

    few, many = interval(40), interval(400)
    assert few["share"] == many["share"] == 0.75
    assert few["low"] < 0.75 < few["high"]
    # 1.96 * sqrt(0.75 * 0.25 / n) to each side: 0.134 and 0.042
    assert few["high"] - few["low"] == pytest.approx(0.268, abs=0.05)
    assert many["high"] - many["low"] == pytest.approx(0.085, abs=0.02)


def test_a_judge_that_follows_the_order_is_found_out():
    pairs = [Pair("q", f"good {i}", f"bad {i}") for i in range(12)]
    with JudgeServer(lambda asked: asked.verdict(better="first")) as server:
        result = audit(load(server.url, MODEL), pairs)
    assert result["first_wins"]["share"] == result["flipped"]["share"] == 1.0
    assert result["agreement"]["share"] == 0.0
    assert result["self_consistency"]["share"] == 1.0
    assert (result["requests"], result["tokens"]) == (48, 4800)
    assert "first_wins              1.000  [1.000, 1.000]  of 24" in table(result)


def test_repeats_are_asked_anew_and_a_second_audit_is_free(tmp_path):
    pairs = [Pair("q", f"good {i}", f"bad {i}") for i in range(5)]

    def by_seed(asked):
        return asked.verdict(better=("first", "tie")[asked.body["seed"]])

    with JudgeServer(by_seed) as server:
        results = [
            audit(load(server.url, MODEL, cache=tmp_path), pairs, repeated_pairs=3) for _ in "ab"
        ]
        assert len(server.asked) == 5 * 2 + 3 * 2
    assert results[0]["self_consistency"] == {"share": 0.0, "low": 0.0, "high": 0.0, "of": 6}
    assert results[1] | {"requests": 16, "tokens": 1600} == results[0]
    assert (results[1]["requests"], results[1]["tokens"]) == (0, 0)


def test_an_audit_of_a_dead_judge_ends_early():
    pairs = [Pair("q", f"good {i}", f"bad {i}") for i in range(500)]
    with JudgeServer(lambda asked: "garbage") as server:
        judge = load(server.url, MODEL, asks=1, concurrency=4)
        with pytest.raises(UsageError, match="pairs in a row got no verdict"):
            audit(judge, pairs)
        assert len(server.asked) < 150


@pytest.mark.skipif(not HH.exists(), reason=f"needs the real pairs, {HH.name}, beside the checkout")
def test_the_command_on_real_pairs(capsys, tmp_path):
    pairs = read_pairs(HH, 150)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with JudgeServer(longest) as server:
        given = [str(HH), "--url", server.url, "--model", MODEL, "--limit", "150", "--repeats", "0"]
        options = parser.parse_args([*given, "--cache", str(tmp_path)])
        assert command.run(options) == 0
        printed = capsys.readouterr()
        assert command.run(options) == 0
        again = json.loads(capsys.readouterr().out)
    [line] = printed.out.splitlines()
    result = json.loads(line)
    assert "agreement where the chosen text is" in printed.err
    assert result["pairs"] == 150 and again["requests"] == 0
    unlike = [pair for pair in pairs if len(pair.chosen) != len(pair.rejected)]
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in unlike)
    assert result["agreement"]["share"] == round(longer / len(pairs), 4)
    assert result["longer_labels"]["share"] == round(longer / len(unlike), 4)
    assert result["longer_wins"]["share"] == 1.0
    assert result["first_wins"]["share"] == 0.5 and result["flipped"]["share"] == 0.0
    assert again | {"requests": 0, "tokens": 0} == result | {"requests": 0, "tokens": 0}


@pytest.mark.skipif(not HH.exists(), reason=f"needs the real pairs, {HH.name}, beside the checkout")
def test_every_real_dialogue_is_read():
    pairs = read_pairs(HH)
    assert len(pairs) == 2312
    assert all(pair.prompt.startswith("Human:") for pair in pairs)
    assert pairs[0].prompt.endswith("okay some of these do not have anything to do with pens")
    assert pairs[0].chosen.startswith("No, sorry!")


def test_pairs_of_other_forms(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "tie": True, "answer": "a"},
        {"chosen": [_user("q"), _said("a")], "rejected": [_user("q"), _said("b")]},
        {"prompt": [_user("q")], "chosen": [_said("a")], "rejected": [_said("b")]},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_pairs(path) == [
        Pair("q", "a", "b", True, "a"),
        Pair("user: q", "a", "b"),
        Pair("user: q", "a", "b"),
    ]


def _user(text):
    return {"role": "user", "content": text}


def _said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "pairs.jsonl:2: not JSON"),
        ('{"prompt": "q", "chosen": "a"}', "has chosen and rejected"),
        ('{"prompt": "q", "chosen": "a", "rejected": 3}', "both text"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "tie": "no"}', "tie is true or false"),
        ('{"prompt": " ", "chosen": "a", "rejected": "b"}', "are empty"),
        ('{"chosen": "a", "rejected": "b"}', "no prompt"),
        ('{"chosen": [{"text": 1}], "rejected": [{"role": 2}]}', "has role and content"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, line, why):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' + line + "\n")
    with pytest.raises(UsageError, match=why):
        read_pairs(path)


def test_a_file_without_pairs_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-20])
    for name in ("empty.jsonl", "none.jsonl", "torn.jsonl.gz"):
        with pytest.raises(UsageError, match=name):
            read_pairs(tmp_path / name)


def test_a_repetition_is_asked_anew_also_without_a_seed(tmp_path):
    with JudgeServer(longest) as server:
        judge = load(server.url, MODEL, cache=tmp_path, sampling={"seed": None})
        for repeat in (0, 1, 1):
            asyncio.run(judge.compare("q", "a", "bb", repeat=repeat))
        assert len(server.asked) == 4
        assert all("seed" not in asked.body for asked in server.asked)
