"""Batch rewards: which samples are judged together, and what becomes of each of them."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import rewards
from rewards import Case, Outcome, Score
from rewards.batched import Batched

CASE = Case("2+2?", "4", "4", (), {"level": 3})


def cases(n):
    return [replace(CASE, completion=str(i)) for i in range(n)]


def judge_all(reward, given, timeout_s=5.0):
    async def run():
        return await asyncio.gather(*(rewards.apply(reward, c, timeout_s=timeout_s) for c in given))

    return asyncio.run(run())


def recorder(**options):
    seen = []

    def numbers(completion):
        seen.append(list(completion))
        return [float(text) for text in completion]

    return Batched(numbers, **options), seen


def test_samples_are_judged_together_and_each_gets_its_own_score():
    reward, seen = recorder(max_batch=4)
    scores = judge_all(reward, cases(10))
    assert [score.value for score in scores] == [float(i) for i in range(10)]
    assert [len(batch) for batch in seen] == [4, 4, 2]
    assert sorted(text for batch in seen for text in batch) == sorted(map(str, range(10)))


def test_a_lone_sample_waits_for_the_window_and_no_longer():
    reward, seen = recorder(max_batch=64, window_s=0.05)
    started = time.monotonic()
    assert judge_all(reward, cases(1))[0].value == 0.0
    assert 0.04 < time.monotonic() - started < 2
    assert seen == [["0"]]


def test_a_batch_function_may_be_async():
    async def right(completion, answer):
        await asyncio.sleep(0.01)
        return [c == a for c, a in zip(completion, answer, strict=True)]

    scores = judge_all(Batched(right), [CASE, replace(CASE, completion="5")])
    assert scores == [Score(1.0, Outcome.CORRECT), Score(0.0, Outcome.WRONG)]


def test_each_entry_is_read_as_the_result_of_a_single_reward_would_be():
    half = Score(0.5, Outcome.UNPARSEABLE, {"tags": 1.0})
    returned = [1, False, half, None, float("nan"), "x"]
    scores = judge_all(Batched(lambda completion: returned), cases(6))
    assert [score.value for score in scores] == [1.0, 0.0, 0.5, None, None, None]
    assert scores[2] is half
    assert [score.outcome for score in scores[3:]] == [Outcome.ERROR] * 3
    assert "could not judge this sample" in scores[3].detail
    assert "not a finite number" in scores[4].detail


def test_an_array_is_a_list():
    scores = judge_all(Batched(lambda completion: np.array([0.25, 1.0])), cases(2))
    assert [score.value for score in scores] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ([1.0], "returned 1 scores for 2 samples"),
        ([1.0] * 3, "returned 3 scores for 2 samples"),
        (1.0, "not a list of 2 scores"),
        ("ab", "not a list of 2 scores"),
        (None, "not a list of 2 scores"),
        (np.float64(1.0), "not a list of 2 scores"),
    ],
)
def test_a_result_of_the_wrong_length_leaves_the_batch_unjudged(returned, why):
    scores = judge_all(Batched(lambda completion: returned), cases(2))
    assert [(score.value, score.outcome) for score in scores] == [(None, Outcome.ERROR)] * 2
    assert all(why in score.detail for score in scores)


def test_an_error_marks_exactly_the_samples_of_its_batch():
    def picky(completion):
        if "1" in completion:
            raise RuntimeError("no ones")
        return [1.0] * len(completion)

    scores = judge_all(Batched(picky, max_batch=2), cases(6))
    assert [score.value for score in scores] == [None, None, 1.0, 1.0, 1.0, 1.0]
    assert scores[0].outcome is Outcome.ERROR
    assert "RuntimeError: no ones" in scores[0].detail
    assert "reward 'picky'" in scores[0].detail


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), RecursionError()])
def test_no_exception_gets_out(error):
    def sync(completion):
        raise error

    async def asynchronous(completion):
        raise error

    for function in (sync, asynchronous):
        assert [s.outcome for s in judge_all(Batched(function), cases(2))] == [Outcome.ERROR] * 2


def test_the_deadline_of_a_batch_is_that_of_its_samples():
    async def slow(completion):
        await asyncio.sleep(30)

    release = threading.Event()

    def hangs(completion):
        release.wait(30)

    for function in (slow, hangs):
        started = time.monotonic()
        scores = judge_all(Batched(function), cases(3), timeout_s=0.05)
        assert [score.outcome for score in scores] == [Outcome.TIMEOUT] * 3
        assert "no answer after 0.05 s" in scores[0].detail
        assert time.monotonic() - started < 5
    release.set()


def test_samples_with_other_deadlines_or_columns_are_judged_apart():
    seen = []

    def optional(completion, level=None):
        seen.append((len(completion), level))
        return [1.0] * len(completion)

    reward = Batched(optional)

    async def run():
        bare = replace(CASE, columns={})
        given = [(CASE, 5.0), (bare, 5.0), (CASE, 9.0), (CASE, 5.0)]
        return await asyncio.gather(*(rewards.apply(reward, c, timeout_s=t) for c, t in given))

    assert [score.value for score in asyncio.run(run())] == [1.0] * 4
    assert sorted(seen, key=str) == [(1, None), (1, [3]), (2, [3, 3])]


def test_a_missing_column_is_the_error_of_that_sample_alone():
    def wants(level):
        return [1.0] * len(level)

    scores = judge_all(Batched(wants), [CASE, replace(CASE, columns={}), CASE])
    assert [score.value for score in scores] == [1.0, None, 1.0]
    assert "asks for level" in scores[1].detail


def test_a_cancelled_caller_leaves_the_batch_and_the_others_are_judged():
    reward, seen = recorder(window_s=0.1)

    async def run():
        tasks = [asyncio.create_task(rewards.apply(reward, c)) for c in cases(3)]
        await asyncio.sleep(0)  # all of them wait for the window now
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert (first.value, third.value) == (0.0, 2.0)
    assert isinstance(second, asyncio.CancelledError)
    assert seen == [["0", "2"]]


def test_a_running_batch_is_cancelled_when_nobody_waits_any_more():
    ended = []

    async def slow(completion):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append(len(completion))
            raise

    reward = Batched(slow, window_s=0.0)

    async def run():
        tasks = [asyncio.create_task(rewards.apply(reward, c)) for c in cases(2)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        assert ended == []
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert ended == [2]

    asyncio.run(run())


def test_one_reward_serves_several_event_loops_one_after_the_other_and_at_once():
    reward, seen = recorder(max_batch=64)
    assert [s.value for s in judge_all(reward, cases(2))] == [0.0, 1.0]
    found = {}

    def elsewhere(name):
        found[name] = [score.value for score in judge_all(reward, cases(3))]

    threads = [threading.Thread(target=elsewhere, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]}
    assert sorted(map(len, seen)) == [2, 3, 3]


def test_registered_with_batch_it_is_loaded_combined_and_still_callable():
    @rewards.register("batched_test_length", batch=True)
    def length(completion, limit=1, **columns):
        assert "level" in columns
        return [float(len(text) <= limit) for text in completion]

    assert rewards.load("batched_test_length") is length
    assert rewards.name_of(length) == "batched_test_length"
    assert length(completion=["a", "ab"], level=[1, 1]) == [1.0, 0.0]
    both = rewards.combine({"batched_test_length": 1.0, "loose": (load_limit(2), 0.5)})
    given = [replace(CASE, completion=text) for text in ("a", "ab", "abc")]
    assert [score.value for score in judge_all(both, given)] == [1.5, 0.5, 0.0]


def load_limit(limit):
    return rewards.load("batched_test_length", limit=limit)


def test_a_batch_reward_asks_for_columns_like_any_other():
    def wants(completion, answer, level): ...

    assert rewards.required_columns(Batched(wants)) == {"answer", "level"}


def test_a_thousand_samples_take_as_many_calls_as_they_fill():
    reward, seen = recorder(max_batch=64)
    assert len(judge_all(reward, cases(1000))) == 1000
    assert [len(batch) for batch in seen].count(64) == 15  # 15 * 64 = 960
    assert sum(map(len, seen)) == 1000
