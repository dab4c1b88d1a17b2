"""One reward on one sample: what it receives, what its answer becomes, and the deadline."""

import asyncio
import threading
import time

import numpy as np
import pytest

import rewards
from rewards import Case, Outcome, Score

CASE = Case("2+2?", "It is 4", "4", ({"role": "user", "content": "2+2?"},), {"level": 3})


def judged(reward, case=CASE, timeout_s=5.0):
    return asyncio.run(rewards.apply(reward, case, timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("returned", "value", "outcome"),
    [
        (True, 1.0, Outcome.CORRECT),
        (False, 0.0, Outcome.WRONG),
        (1, 1.0, Outcome.CORRECT),
        (0.25, 0.25, Outcome.WRONG),
        (2.5, 2.5, Outcome.CORRECT),
        (-1.0, -1.0, Outcome.WRONG),
        (np.float32(0.5), 0.5, Outcome.WRONG),
        (np.bool_(True), 1.0, Outcome.CORRECT),
        (np.array(1.0), 1.0, Outcome.CORRECT),
    ],
)
def test_numbers_become_scores(returned, value, outcome):
    assert judged(lambda: returned) == Score(value, outcome)


def test_a_score_is_kept_as_it_is():
    score = Score(0.0, Outcome.UNPARSEABLE, {"format": 0.0}, "no answer")
    assert judged(lambda: score) is score


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (float("nan"), "not a finite number"),
        (float("inf"), "not a finite number"),
        (None, "is a return missing"),
        ("1.0", "not a float, bool or Score"),
        ([1.0], "not a float, bool or Score"),
        (np.array([1.0, 0.0]), "not a float, bool or Score"),
        (1j, "not a float, bool or Score"),
    ],
)
def test_what_is_no_judgement_is_an_error_and_not_a_zero(returned, why):
    score = judged(lambda: returned)
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert why in score.detail


def test_a_raising_reward_keeps_its_traceback():
    def broken(completion):
        return completion.index("five")

    score = judged(broken)
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert "reward 'broken'" in score.detail
    assert 'return completion.index("five")' in score.detail
    assert score.detail.rstrip().endswith("ValueError: substring not found")


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), MemoryError(), RecursionError()])
def test_no_exception_of_a_reward_gets_out(error):
    def sync():
        raise error

    async def asynchronous():
        raise error

    assert judged(sync).outcome is Outcome.ERROR
    assert judged(asynchronous).outcome is Outcome.ERROR


def test_a_reward_receives_only_what_it_names():
    def two(completion, level):
        return float(completion == "It is 4" and level == 3)

    def rest(answer, **columns):
        assert set(columns) == {"prompt", "completion", "messages", "level"}
        return answer == "4"

    assert judged(two).value == 1.0
    assert judged(rest).value == 1.0


def test_a_column_does_not_hide_the_completion():
    case = Case("p", "written", None, (), {"completion": "from the data", "prompt": "other"})
    assert (
        judged(lambda completion, prompt: (completion, prompt) == ("written", "p"), case).value == 1
    )


def test_a_missing_column_is_named():
    score = judged(lambda difficulty: 1.0)
    assert score.outcome is Outcome.ERROR
    assert "asks for difficulty" in score.detail


def test_async_rewards_are_awaited_also_behind_a_plain_function():
    async def right(answer, completion):
        await asyncio.sleep(0)
        return answer in completion

    class Right:
        async def __call__(self, answer, completion):
            return answer in completion

    assert judged(right).value == 1.0
    assert judged(Right()).value == 1.0
    assert judged(lambda answer, completion: right(answer, completion)).value == 1.0


def test_a_slow_async_reward_times_out():
    async def slow():
        await asyncio.sleep(30)

    started = time.monotonic()
    score = judged(slow, timeout_s=0.05)
    assert time.monotonic() - started < 5
    assert (score.value, score.outcome) == (None, Outcome.TIMEOUT)
    assert "no answer after 0.05 s" in score.detail


def test_a_verifier_that_says_time_out_is_believed():
    def verifier():
        raise TimeoutError("sandbox took too long")

    score = judged(verifier)
    assert score.outcome is Outcome.TIMEOUT
    assert "sandbox took too long" in score.detail


def test_a_hung_thread_is_counted_and_lets_the_others_work():
    release = threading.Event()
    before = rewards.hung_threads()

    def hangs():
        release.wait(30)
        return 1.0

    async def many():
        hung = [rewards.apply(hangs, CASE, timeout_s=0.05) for _ in range(3)]
        fine = [rewards.apply(lambda: 1.0, CASE, timeout_s=5) for _ in range(100)]
        return await asyncio.gather(*hung, *fine)

    scores = asyncio.run(many())
    assert [s.outcome for s in scores[:3]] == [Outcome.TIMEOUT] * 3
    assert [s.value for s in scores[3:]] == [1.0] * 100
    assert rewards.hung_threads() == before + 3
    release.set()
    until = time.monotonic() + 10
    while rewards.hung_threads() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert rewards.hung_threads() == before


def test_sync_rewards_leave_the_event_loop_free_and_share_few_threads():
    seen = set()

    def blocks():
        seen.add(threading.get_ident())
        time.sleep(0.02)
        return 1.0

    async def run():
        ticks = 0
        work = asyncio.gather(*(rewards.apply(blocks, CASE) for _ in range(64)))
        while not work.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return ticks, await work

    ticks, scores = asyncio.run(run())
    assert [s.value for s in scores] == [1.0] * 64
    assert ticks >= 3  # 64 calls of 20 ms over 16 threads take at least 80 ms
    assert 2 <= len(seen) <= 16
    assert threading.get_ident() not in seen


def test_waiting_for_a_thread_is_not_in_the_deadline():
    # 192 calls of 0.2 s over 16 threads: the last ones end after 2.4 s, later than the deadline
    async def run():
        calls = [
            rewards.apply(lambda: time.sleep(0.2) or 1, CASE, timeout_s=2.0) for _ in range(192)
        ]
        return await asyncio.gather(*calls)

    assert [s.value for s in asyncio.run(run())] == [1.0] * 192


def test_cancelling_the_caller_ends_the_wait():
    async def run():
        task = asyncio.create_task(rewards.apply(lambda: time.sleep(0.3), CASE, timeout_s=20))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
