"""Servers that fail in every way, and a full disk: told, counted, and nothing lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from data_gen.journal import Journal
from tests.data_gen.chat_server import MODEL, ChatServer
from tests.data_gen.test_rejection import number_of, right_on_even_seeds, sample


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("data_gen.servers.FIRST_REST_S", 0.01)
    monkeypatch.setattr("data_gen.servers.LONGEST_REST_S", 0.02)
    monkeypatch.setattr("rewards.chat_server.jitter", lambda attempt: 0.001)


def summary(out: Path):
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_now_and_then_costs_nothing_but_requests(tmp_path, status) -> None:
    seen: set[int] = set()

    def behave(body):
        if body["seed"] not in seen:
            seen.add(body["seed"])
            return (status, "later")
        return right_on_even_seeds(body)

    with ChatServer(behave) as server:
        data = sample(server, tmp_path / "out", filters=())
        assert len(server.bodies) == 120
    with ChatServer(right_on_even_seeds) as server:
        whole = sample(server, tmp_path / "whole", filters=())
    assert data.to_list() == whole.to_list()
    counts = summary(tmp_path / "out")["requests"]
    assert (counts["asked"], counts["replies"], counts["requests"]) == (60, 60, 120)


@pytest.mark.parametrize("status", [500, 429])
def test_an_item_that_nobody_answers_fails_by_its_deadline_and_the_rest_goes_on(
    tmp_path, status
) -> None:
    def behave(body):
        return (status, "out of order") if number_of(body) == 3 else right_on_even_seeds(body)

    with ChatServer(behave) as server:
        sample(server, tmp_path / "out", n_tasks=40, samples=2, request_timeout_s=8, in_flight=4)
    told = summary(tmp_path / "out")
    assert told["items_failed"] == 1
    (reason,) = told["failures"]
    assert "no reply in 8 s" in reason
    assert f"status {status}: out of order" in reason
    assert told["kept"] + sum(told["dropped"].values()) == 78
    assert told["requests"]["server_failures"] >= 1


def test_a_server_that_never_answers_is_left_at_the_deadline(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds, delay_s=30) as server:
        data = sample(server, tmp_path / "out", n_tasks=2, samples=1, request_timeout_s=0.3)
    assert len(data) == 0
    assert summary(tmp_path / "out")["failures"] == {"no reply in 0.3 s (timeout_s)": 2}


def test_nonsense_is_a_wrong_answer_and_an_empty_message_too(tmp_path: Path) -> None:
    replies = ["\u0000\ud83d\ude00 nonsense \\u0000", ""]

    def behave(body):
        return replies[body["seed"] % 2]

    with ChatServer(behave) as server:
        assert len(sample(server, tmp_path / "out")) == 0
    assert sum(summary(tmp_path / "out")["dropped"].values()) == 60
    assert summary(tmp_path / "out")["items_failed"] == 0


def test_a_200_that_is_no_completion_is_asked_again(tmp_path: Path) -> None:
    first = {"on": True}

    def behave(body):
        if first.pop("on", False):
            return (200, "a page of a proxy")
        return right_on_even_seeds(body)

    with ChatServer(behave) as server:
        sample(server, tmp_path / "out")
        assert len(server.bodies) == 61
    assert summary(tmp_path / "out")["items_failed"] == 0


def test_a_full_disk_stops_the_run_and_the_same_call_goes_on(tmp_path: Path, monkeypatch) -> None:
    put, left = Journal.put, {"n": 25}

    def until_full(self, key, value):
        left["n"] -= 1
        if left["n"] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", "replies")
        put(self, key, value)

    with ChatServer(right_on_even_seeds) as server:
        monkeypatch.setattr(Journal, "put", until_full)
        with pytest.raises(OSError, match="No space left on device"):
            sample(server, tmp_path / "out", in_flight=2)
        assert not (tmp_path / "out/data").exists()
        assert not (tmp_path / "out/summary.json").exists()
        asked = len(server.bodies)
        monkeypatch.setattr(Journal, "put", put)
        data = sample(server, tmp_path / "out")
        kept = sum(1 for path in (tmp_path / "out/work/replies").glob("*") for _ in path.open())
        assert kept == 60
        assert len(server.bodies) - asked < 60
    with ChatServer(right_on_even_seeds) as server:
        assert data.to_list() == sample(server, tmp_path / "whole").to_list()


def test_a_disk_that_is_full_when_publishing_leaves_the_last_data_whole(
    tmp_path: Path, monkeypatch
) -> None:
    with ChatServer(right_on_even_seeds) as server:
        before = sample(server, tmp_path / "out").to_list()

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
            with pytest.raises(OSError, match="No space left"):
                sample(server, tmp_path / "out")
        import datasets

        again = datasets.load_dataset(str(tmp_path / "out"), split="train")
        assert again.to_list() == before
        assert sample(server, tmp_path / "out").to_list() == before


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys) -> None:
    from data_gen.cli import main

    config = tmp_path / "c.toml"
    config.write_text(f'out = "{tmp_path}/out"\nenv = "nowhere"\nn_tasks = 1\n')
    assert main(["rejection", str(config)]) == 2
    assert "the configuration lacks servers" in capsys.readouterr().err
    with ChatServer(lambda body: "A text.") as server:
        config.write_text(
            f'out = "{tmp_path}/said"\ndocuments = ["One text of four."]\nquiet = true\n'
            f'[[servers]]\nurl = "{server.url}"\nmodel = "{MODEL}"\n'
        )
        assert main(["rephrase", str(config), 'styles=["simple"]']) == 0
        assert capsys.readouterr().out == f"2 rows in {tmp_path}/said\n"
        assert main(["rephrase", str(config), 'styles=["simpel"]']) == 2
        assert "simple" in capsys.readouterr().err
