"""Rejection sampling against a scripted server: what is kept, why, and what a resume asks again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

import data_gen
import envs
from tests.data_gen.chat_server import MODEL, ChatServer

ROWS = [{"id": str(i), "prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]


def sums():
    """Sums with an exact-match reward; all forty rows are training tasks."""
    return envs.from_tasks(
        ROWS, reward="exact", name="sums", held_out=[{"id": "h", "prompt": "one?", "answer": "one"}]
    )


def number_of(body):
    return int(body["messages"][-1]["content"].split()[2])


def right_on_even_seeds(body):
    """Half of the samples are right; the length differs by seed."""
    right = body["seed"] % 2 == 0
    return str(number_of(body) + (1 if right else 2))


def sample(server, out, **settings):
    return sample_of(data_gen.Server(server.url, MODEL), out, **settings)


def sample_of(servers, out, **settings):
    arguments = {"n_tasks": 10, "samples": 6, "seed": 1, "quiet": True} | settings
    return data_gen.rejection_sample(sums(), servers, out, **arguments)


def test_the_right_answers_are_kept_with_scores_and_provenance(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        data = sample(server, tmp_path / "out", temperatures=(0.5, 1.0), filters=())
    assert len(server.bodies) == 60
    for row in data:
        question, answer = row["messages"]
        assert answer["content"] == str(int(question["content"].split()[2]) + 1)
        assert (row["outcome"], row["reward"], row["generator"]) == ("correct", 1.0, "rejection")
        assert row["temperature"] in (0.5, 1.0)
    right = {body["seed"] for body in server.bodies if body["seed"] % 2 == 0}
    dropped = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/dropped/*.parquet"), split="train"
    )
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    over_cap = summary["dropped"].get("over the cap of its prompt", 0)
    assert len(data) + over_cap == len(right)
    assert summary["dropped"]["wrong"] == 60 - len(right)
    assert len(dropped) == 60 - len(data)
    assert set(dropped["dropped"]) == set(summary["dropped"])


def test_the_folder_opens_as_a_data_set_of_its_own(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        data = sample(server, tmp_path / "out")
    again = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert again.to_list() == data.to_list()
    assert len({row["content_hash"] for row in again}) == len(again)  # the default filter
    card = (tmp_path / "out/README.md").read_text()
    assert f"{len(data)} rows kept of 60" in card
    assert "| duplicate |" in card


def test_the_same_call_again_asks_nothing(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        first = sample(server, tmp_path / "out").to_list()
        asked = len(server.bodies)
        second = sample(server, tmp_path / "out").to_list()
        assert len(server.bodies) == asked
    assert first == second


def test_requests_are_a_function_of_seed_and_task(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        one = sample(server, tmp_path / "a", in_flight=1).to_list()
        other = sample(server, tmp_path / "b", in_flight=32).to_list()
        third = sample(server, tmp_path / "c", seed=2).to_list()
    assert one == other
    assert one != third


def test_another_job_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        sample(server, tmp_path / "out")
        with pytest.raises(data_gen.UsageError, match="'samples': 6.*now .*'samples': 7"):
            sample(server, tmp_path / "out", samples=7)


def test_a_failed_request_goes_to_the_retry_file_and_is_tried_again(tmp_path: Path) -> None:
    broken = {"on": True}

    def behave(body):
        if broken["on"] and number_of(body) == 3:
            return (400, "no threes here")
        return str(number_of(body) + 1)

    with ChatServer(behave) as server:
        data = sample(server, tmp_path / "out", samples=2, n_tasks=40)
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        assert summary["items_failed"] == 1
        (reason,) = summary["failures"]
        assert "no threes here" in reason
        failures = (tmp_path / "out/work/failures.jsonl").read_text().splitlines()
        assert len(failures) == 1
        broken["on"] = False
        asked = len(server.bodies)
        mended = sample(server, tmp_path / "out", samples=2, n_tasks=40)
        assert len(server.bodies) - asked <= 2
    assert len(mended) == len(data) + 1
    assert json.loads((tmp_path / "out/summary.json").read_text())["items_failed"] == 0


def test_servers_that_fail_over_and_over_stop_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_gen.pipeline.MAX_FAILURES", 5)
    with (
        ChatServer(lambda body: (422, "out of order")) as server,
        pytest.raises(data_gen.GenerationError, match="5 items in a row failed.*out of order"),
    ):
        sample(server, tmp_path / "out", in_flight=1)


def test_a_reward_that_raises_is_no_answer_that_was_wrong(tmp_path: Path) -> None:
    def broken(completion, **columns):
        raise RuntimeError("the judge is ill")

    with ChatServer(right_on_even_seeds) as server:
        data = sample(server, tmp_path / "out", reward=broken)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(data) == 0
    assert summary["dropped"] == {"not judged": 60}


def test_several_models_take_turns_with_the_temperatures(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds, models=("a", "b")) as server:
        servers = [data_gen.Server(server.url, "a"), data_gen.Server(server.url, "b")]
        data_gen.rejection_sample(
            sums(),
            servers,
            tmp_path / "out",
            n_tasks=1,
            samples=8,
            temperatures=(0.5, 1.0),
            quiet=True,
        )
    pairs = sorted((body["model"], body["temperature"]) for body in server.bodies)
    assert pairs == sorted([("a", 0.5), ("b", 0.5), ("a", 1.0), ("b", 1.0)] * 2)


KILLED = """
import sys, data_gen
from tests.data_gen.test_rejection import sums
data_gen.rejection_sample(sums(), data_gen.Server(sys.argv[1], "scripted"), sys.argv[2],
    n_tasks=40, samples=4, seed=1, in_flight=4, quiet=True)
"""


class Adder(envs.ToolEnv):
    def add(self, a: int, b: int) -> int:
        """The sum."""
        return a + b

    def judge(self, message):
        return message["content"] == self.task.answer


def calls_then_answers(body):
    """First a call that can't be read, then one that can, then its result."""
    last = body["messages"][-1]
    if last["role"] == "tool" and "error" not in last["content"]:
        return last["content"]
    a = int(body["messages"][0]["content"].split()[2])
    arguments = "{a: 1" if last["role"] == "user" else json.dumps({"a": a, "b": 1})
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_an_environment_with_tools_is_played_over_the_chat_route(tmp_path: Path) -> None:
    world = envs.Episodes("adder", sums().tasks, Adder)
    with ChatServer(calls_then_answers) as server:
        data = data_gen.rejection_sample(
            world, data_gen.Server(server.url, MODEL), tmp_path / "out", n_tasks=3, samples=1,
            quiet=True,
        )  # fmt: skip
        told = [body["tools"][0]["function"]["name"] for body in server.bodies]
    assert told == ["add"] * 9
    assert len(data) == 3
    for row in data:
        assert [m["role"] for m in row["messages"]] == [
            *("user", "assistant", "tool", "assistant", "tool", "assistant"),
        ]
        assert "could not be read" in row["messages"][2]["content"]
        assert row["messages"][3]["tool_calls"][0]["function"]["name"] == "add"
        assert json.loads(row["tools"])[0]["function"]["description"] == "The sum."


def test_kill_loses_only_what_was_in_flight_and_repeats_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = str(Path(__file__).resolve().parents[2])
    with ChatServer(right_on_even_seeds, delay_s=0.03) as server:
        for after in (30, 70, 110):
            child = subprocess.Popen(
                [sys.executable, "-c", KILLED, server.url, str(out)],
                env={**os.environ, "PYTHONPATH": root},
            )
            deadline = time.monotonic() + 60
            while len(server.bodies) < after and child.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            time.sleep(0.1)
        with (out / "work" / "items" / "00000.jsonl").open("a") as torn:
            torn.write('{"key": "abc')  # a line that its writer did not finish
        data = sample(server, out, n_tasks=40, samples=4, in_flight=4)
        seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 160
    assert len(seeds) - 160 <= 3 * 16  # four tasks of four requests in flight at each kill
    with ChatServer(right_on_even_seeds) as server:
        whole = sample(server, tmp_path / "whole", n_tasks=40, samples=4)
    assert data.to_list() == whole.to_list()


def test_more_of_the_request_is_passed_on_and_what_is_ours_is_not_taken(tmp_path: Path) -> None:
    with ChatServer(right_on_even_seeds) as server:
        sample(server, tmp_path / "out", extra={"top_k": 3})
        assert {body["top_k"] for body in server.bodies} == {3}
        with pytest.raises(data_gen.UsageError, match="extra cannot hold seed"):
            sample(server, tmp_path / "other", extra={"seed": 1})


def test_a_place_goes_to_those_who_can_use_it(tmp_path: Path) -> None:
    """Two models, one place each: nobody who waits for the other one is woken in vain."""
    with ChatServer(right_on_even_seeds, models=("a", "b")) as server:
        servers = [data_gen.Server(server.url, name, concurrency=1) for name in ("a", "b")]
        started = time.monotonic()
        sample_of(servers, tmp_path / "out")
        assert time.monotonic() - started < 30  # a missed turn cost a second
        assert server.most_in_flight <= 2
        assert len(server.bodies) == 60
