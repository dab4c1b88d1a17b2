"""Rows, files and data sets as tasks."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

import envs
from envs import UsageError

ROWS = [{"prompt": f"{i} + {i} =", "answer": str(2 * i), "level": i % 3} for i in range(200)]


def exact(completion, answer):
    return completion.strip() == answer


def test_every_pass_shows_each_training_row_once_in_its_own_order():
    tasks = envs.from_tasks(ROWS, reward=exact, seed=5).tasks
    n = len(tasks)
    first = [tasks.train(i).task_id for i in range(n)]
    second = [tasks.train(n + i).task_id for i in range(n)]
    assert Counter(first) == Counter(second)
    assert max(Counter(first).values()) == 1
    assert first != second
    again = envs.from_tasks(ROWS, reward=exact, seed=5).tasks
    assert [again.train(n + i).task_id for i in reversed(range(n))] == second[::-1]
    other = envs.from_tasks(ROWS, reward=exact, seed=6).tasks
    assert [other.train(i).task_id for i in range(n)] != first


def test_the_hash_decides_what_is_held_out():
    tasks = envs.from_tasks(ROWS, reward=exact).tasks
    expected = [row["prompt"] for row in ROWS if envs.held_out(row["prompt"])]
    assert [t.messages[0]["content"] for t in tasks.held_out(len(expected))] == expected
    assert len(tasks) == 200 - len(expected)
    with pytest.raises(UsageError, match=f"{len(expected) + 1} held-out tasks asked for"):
        tasks.held_out(len(expected) + 1)


def test_held_out_rows_of_their_own_are_dropped_from_training():
    aside = [{"prompt": " 7 + 7 =", "answer": "14"}, {"prompt": "x", "answer": "y"}] * 2
    tasks = envs.from_tasks(ROWS, reward=exact, held_out=aside).tasks
    assert len(tasks) == 199
    assert [t.answer for t in tasks.held_out(2)] == ["14", "y"]


def test_a_row_becomes_a_task():
    tasks = envs.from_tasks(ROWS, reward=exact, held_out_percent=0).tasks
    task = next(t for t in tasks.every() if t.task_id == "7")
    assert task.messages == ({"role": "user", "content": "7 + 7 ="},)
    assert task.answer == "14"
    assert task.columns == {"prompt": "7 + 7 =", "level": 1}


def test_conversations_go_on_from_their_last_message():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    tasks = envs.from_tasks(
        [{"messages": messages}], reward=lambda completion: 1, held_out_percent=0
    )
    assert tasks.tasks.train(0).messages == tuple(messages)


FORMATS = ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet", "saved"]


def write(path: Path) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        text = "\n".join(map(json.dumps, ROWS)) + "\n\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tasks(tmp_path, name):
    write(tmp_path / name)
    loaded = envs.load(tmp_path / name, reward=exact)
    expected = envs.from_tasks(ROWS, reward=exact)
    assert loaded.tasks.every() == expected.tasks.every()
    assert loaded.tasks.train(17) == expected.tasks.train(17)
    assert envs.check(loaded, 20).ok


def test_datasets_in_memory_and_their_splits():
    data = datasets.Dataset.from_list(ROWS)
    expected = envs.from_tasks(ROWS, reward=exact).tasks.every()
    assert envs.load(data, reward=exact).tasks.every() == expected
    splits = datasets.DatasetDict({"train": data})
    assert envs.load(splits, reward=exact).tasks.every() == expected
    with pytest.raises(UsageError, match="has no split 'train'; it has test"):
        envs.load(datasets.DatasetDict({"test": data}), reward=exact)


def test_a_held_out_file(tmp_path):
    write(tmp_path / "rows.jsonl")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[3]))
    loaded = envs.load(
        str(tmp_path / "rows.jsonl"), reward=exact, held_out=str(tmp_path / "test.jsonl")
    )
    assert len(loaded.tasks) == 199
    assert loaded.tasks.held_out(1)[0].answer == "6"


@pytest.mark.parametrize(
    ("rows", "options", "why"),
    [
        ([], {}, "is empty: it has no rows"),
        (
            [{"question": "q", "answer": "a"}],
            {},
            "no column 'prompt' or 'messages'.*: question",
        ),
        (ROWS, {"prompt_column": "promt"}, "Did you mean 'prompt'"),
        (ROWS, {"answer_column": "gold"}, "no column 'gold', which the reward asks for.*level"),
        (ROWS, {"reward": lambda difficulty: 1.0}, "no column 'difficulty'"),
        (ROWS, {"reward": "gsm8"}, "unknown reward 'gsm8'"),
        (ROWS, {"reward": None}, "name the reward"),
        (
            ROWS,
            {"answr_column": "x"},
            "'answr_column'. Did you mean 'answer_column'",
        ),
        (ROWS, {"held_out_percent": 100}, "held_out_percent must be"),
        ([*ROWS, {"prompt": " ", "answer": "1"}], {}, "row 200: 'prompt' must be text"),
        ([*ROWS, {"prompt": "p", "answer": ""}], {}, "row 200: 'answer'.*is empty"),
        ([*ROWS, {"prompt": "p"}], {}, "row 200: 'answer'.*is empty"),
        (["text"], {}, "a row must be a mapping"),
        ([{"messages": [], "answer": "1"}], {}, "row 0: messages must be"),
        ([{"messages": [{"role": "user"}], "answer": "1"}], {}, "row 0: messages must be"),
        (
            [{"messages": [{"role": "assistant", "content": "a"}], "answer": "1"}],
            {},
            "the last message is the assistant's",
        ),
    ],
)
def test_bad_rows_and_options(rows, options, why):
    with pytest.raises(UsageError, match=why):
        envs.from_tasks(rows, **{"reward": exact, **options})


def test_all_rows_held_out():
    held = next(row for row in ROWS if envs.held_out(row["prompt"]))
    with pytest.raises(UsageError, match="all 1 rows are held out"):
        envs.from_tasks([held], reward=exact)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"prompt": "p"}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not an object but list"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xff\xfe", "cannot read"),
        ("a.json", b"{}", "must hold a list"),
        ("a.json", b"{", "is not JSON"),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.csv", b"prompt,answer", "its name must end in"),
    ],
)
def test_bad_files(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=why):
        envs.load(tmp_path / name, reward=exact)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UsageError, match=r"no such data file: .*a\.jsonl"):
        envs.load(tmp_path / "a.jsonl", reward=exact)
    with pytest.raises(UsageError, match="not one written by save_to_disk"):
        envs.load(tmp_path, reward=exact)


def gsm8k_folder() -> Path:
    folder = Path(os.environ.get("GSM8K_FOLDER", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "gsm8k_train.jsonl.gz").exists():
        pytest.skip(f"no gsm8k_train.jsonl.gz in {folder}; name its folder in GSM8K_FOLDER")
    return folder


def test_every_gsm8k_gold_scores_one_and_an_empty_or_echoed_answer_nothing():
    folder = gsm8k_folder()
    environment = envs.load(
        folder / "gsm8k_train.jsonl.gz",
        held_out=folder / "gsm8k_test.jsonl.gz",
        prompt_column="question",
        reward="gsm8k",
    )
    assert (len(environment.tasks), len(environment.tasks.held_out(1319))) == (7473, 1319)
    report = envs.check(environment, tasks=environment.tasks.every())
    assert report.ok, str(report)
    assert (report.tasks, report.without_gold) == (8792, 0)
