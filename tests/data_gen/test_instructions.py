"""Self-Instruct against a scripted server: the pool, its rounds, odd replies, and resumption."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_gen
from data_gen.instructions import read_tasks
from data_gen.rouge import Pool, common_length, rouge_l
from tests.data_gen.chat_server import MODEL, ChatServer

SEEDS = [
    {
        "instruction": f"Explain the {word} of a lighthouse to a child.",
        "output": f"The {word} is ...",
    }
    for word in ("lamp", "stairs", "keeper", "fog horn", "paint")
]
VERBS = ("sort", "count", "translate", "praise", "shorten", "rhyme", "debug", "measure", "invert")


def a_task(number: int, instruction: str, answer: str = "Done.", given: str = "<noinput>") -> str:
    parts = ("Instruction", instruction), ("Input", given), ("Output", answer)
    return "".join(f"{number}. {name}: {text}\n" for name, text in parts)


def writes_tasks(body):
    """Two tasks, one as in every other reply; the numbers go on from the prompt."""
    start = int(re.findall(r"(\d+)\. Instruction:$", body["messages"][0]["content"])[0])
    verb, seed = VERBS[body["seed"] % len(VERBS)], body["seed"]
    own = f"{verb} item{seed} beside thing{seed // 10} under place{seed // 7}"
    first = a_task(start, own, "y", f"x{seed}").removeprefix(f"{start}. Instruction:")
    return first + "###\n" + a_task(start + 1, "Please write a short poem about the sea today.")


def write(server, out, **settings):
    arguments = {"n": 12, "per_round": 4, "seed": 3, "quiet": True} | settings
    return data_gen.self_instruct(SEEDS, data_gen.Server(server.url, MODEL), out, **arguments)


def test_tasks_unlike_the_pool_are_kept_until_there_are_enough(tmp_path: Path) -> None:
    with ChatServer(writes_tasks) as server:
        data = write(server, tmp_path / "out")
    # The poem once, and four others of each round: 5, 9, 13.
    assert len(server.bodies) == 12
    assert len(data) == 13
    poems = [row for row in data if "poem" in row["instruction"]]
    assert len(poems) == 1
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["dropped"] == {"like an earlier instruction": 11}
    other = next(row for row in data if "poem" not in row["instruction"])
    question, answer = other["messages"]
    assert question["content"] == f"{other['instruction']}\n\nx{other['seed']}"
    assert answer == {"role": "assistant", "content": "y"}


def test_later_rounds_are_shown_new_tasks_and_the_first_is_not(tmp_path: Path) -> None:
    with ChatServer(writes_tasks) as server:
        write(server, tmp_path / "out")
    shown = [body["messages"][0]["content"].count("###\n") for body in server.bodies]
    assert sorted(shown) == [4] * 4 + [6] * 8


def test_the_result_is_the_same_however_many_run_at_once(tmp_path: Path) -> None:
    with ChatServer(writes_tasks) as server:
        one = write(server, tmp_path / "a", in_flight=1).to_list()
        other = write(server, tmp_path / "b", in_flight=8).to_list()
    assert one == other


def test_a_round_with_a_failed_request_is_not_asked_again(tmp_path: Path) -> None:
    broken = {"left": 1}

    def behave(body):
        if broken["left"]:
            broken["left"] -= 1
            return (400, "not now")
        return writes_tasks(body)

    with ChatServer(behave) as server:
        data = write(server, tmp_path / "out")
        assert json.loads((tmp_path / "out/summary.json").read_text())["items_failed"] == 1
        asked = len(server.bodies)
        mended = write(server, tmp_path / "out")
        assert len(server.bodies) == asked + 1  # the one that failed
    assert len(mended) == len(data) + 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I'm sorry, I can't help with that.", "refusal"),
        ("", "empty"),
        ("<think>hm", "empty"),
        ("blah blah", "no task in the reply"),
    ],
)
def test_replies_without_a_task_are_dropped_with_their_reason(
    tmp_path: Path, reply, reason
) -> None:
    with ChatServer(lambda body: reply) as server:
        data = write(server, tmp_path / "out", max_rounds=1)
    assert len(data) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == {reason: 4}


def test_rounds_that_bring_no_new_task_end_the_run(tmp_path: Path) -> None:
    with ChatServer(lambda body: a_task(4, "Write the same poem about rain.")) as server:
        data = write(server, tmp_path / "out")
        rounds = 1 + data_gen.instructions.BARREN_ROUNDS  # the poem is new once
        assert len(server.bodies) == rounds * 4
        write(server, tmp_path / "out")
        assert len(server.bodies) == rounds * 4
    assert len(data) == 1


def test_tasks_that_are_none_are_dropped() -> None:
    found = read_tasks(
        a_task(1, "Draw a picture of a red house.") + "###\nnonsense\n###\n" + a_task(2, "b", "c")
    )
    assert [task["instruction"] for task in found] == ["Draw a picture of a red house.", "b"]
    assert found[0]["input"] == ""
    assert data_gen.instructions._unfit(found[0]) == "needs more than text"
    assert data_gen.instructions._unfit(found[1]) == "instruction too short or too long"


def test_bad_seeds_and_settings_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    with ChatServer(writes_tasks) as server:
        address = data_gen.Server(server.url, MODEL)
        with pytest.raises(data_gen.UsageError, match="seed 1 has no output"):
            data_gen.self_instruct([{"instruction": "x"}], address, tmp_path / "a", n=1)
        with pytest.raises(data_gen.UsageError, match="row 1 of the source has no 'instruction'"):
            data_gen.self_instruct([{"task": "x"}], address, tmp_path / "a", n=1)
        with pytest.raises(data_gen.UsageError, match="per_round is a whole number"):
            write(server, tmp_path / "a", per_round=0)
    assert not (tmp_path / "a").exists()


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat on the mat", "the cat lay on a mat") == pytest.approx(2 * 4 / 12)
    assert rouge_l("a b", "") == 0.0


words = st.lists(st.sampled_from("abcd"), max_size=12)


@given(words, words)
def test_the_common_length_is_that_of_the_table(a, b) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    assert common_length(a, b) == table[-1][-1]


@given(st.lists(words.map(" ".join), max_size=8))
def test_a_pool_takes_exactly_what_is_unlike_all_in_it(texts) -> None:
    pool, kept = Pool(0.7), []
    for text in texts:
        unlike = all(rouge_l(text, other) < 0.7 for other in kept)
        if text:
            assert pool.add(text) is unlike
            kept += [text] if unlike else []
