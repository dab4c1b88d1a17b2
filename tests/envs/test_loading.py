"""What a name stands for, registered environments, and the self-check."""

import asyncio
import os
import subprocess
import sys

import pytest

import envs
import rewards
from envs import Episodes, Step, Task, UsageError
from rewards import Outcome, Score


class Twice:
    """Asks for the double of a number; right at once or over."""

    def start(self, task, *, seed):
        self.answer = task.answer
        return task.messages

    def step(self, message):
        right = message["content"] == self.answer
        return Step(
            score=Score(float(right), Outcome.CORRECT if right else Outcome.WRONG), done=True
        )

    def close(self):
        self.answer = None


def number(rng):
    n = rng.randrange(10_000)
    return Task(str(n), (envs.user(f"double {n}"),), str(2 * n))


def test_a_registered_environment():
    @envs.register("loading_test_twice")
    def twice(seed: int = 0) -> Episodes:
        return Episodes("twice", envs.generated(number, seed=seed), Twice)

    environment = envs.load("loading_test_twice", seed=4)
    assert "loading_test_twice" in envs.names()
    assert environment.tasks.train(0) == envs.generated(number, seed=4).train(0)
    report = envs.check(environment, 25)
    assert report.ok, str(report)
    assert report.tasks == 50
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'sead'. Accepted: seed"):
        envs.load("loading_test_twice", sead=4)
    with pytest.raises(UsageError, match="unknown environment 'loading_test_twise'. Did you mean"):
        envs.load("loading_test_twise")


def test_what_cannot_be_registered():
    with pytest.raises(UsageError, match="without ':' and '/'"):
        envs.register("a:b")
    with pytest.raises(UsageError, match="is already registered, by envs.second_try.second_try"):
        envs.register("second_try")(number)

    @envs.register("loading_test_nothing")
    def nothing():
        return Twice()

    with pytest.raises(UsageError, match="returned Twice, which lacks name, tasks, make"):
        envs.load("loading_test_nothing")


def test_importing_both_packages_is_quick_and_light():
    code = (
        "import sys, time; t = time.process_time(); import rewards, envs; "
        "s = time.process_time() - t; heavy = {'torch', 'transformers', 'datasets', 'pyarrow', "
        "'reasoning_gym', 'numpy', 'posttrain'} & set(sys.modules); print(s, *heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = out.stdout.split()
    assert heavy == []
    assert float(seconds) < 1.0


def test_a_data_set_that_cannot_be_fetched_is_named():
    code = (
        "import envs\n"
        "try: envs.load('nobody/nothing', reward='gsm8k')\n"
        "except envs.UsageError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ran.stdout.startswith("cannot load data set 'nobody/nothing' (split 'train'): ")


ROWS = [{"prompt": f"q{i}", "answer": f"a{i}"} for i in range(50)]


def check_with(reward):
    return envs.check(envs.from_tasks(ROWS, reward=reward, held_out_percent=0), tasks=None, n=10)


def test_check_finds_a_reward_that_is_always_wrong_or_always_right():
    assert check_with(lambda completion, answer: completion == answer).ok
    never = check_with(lambda: 0.0)
    assert (never.count("gold"), never.count("empty"), len(never.failures)) == (10, 0, 10)
    always = check_with(lambda: 1.0)
    assert (always.count("gold"), always.count("empty"), always.count("echo")) == (0, 10, 10)
    assert "10 tasks checked, 20 failures" in str(always)


def test_check_finds_partial_credit_errors_and_chance():
    half = check_with(lambda completion, answer: 1.0 if completion == answer else 0.5)
    assert (half.count("gold"), half.count("empty"), half.count("echo")) == (0, 10, 10)

    def breaks(completion, answer):
        return 1.0 / bool(completion) * (completion == answer)

    broken = check_with(breaks)
    assert broken.count("empty") == len(broken.failures) == 10
    assert "ZeroDivisionError" in broken.failures[0].seen
    calls = iter(range(10**6))
    chance = check_with(lambda completion, answer: float(completion == answer) + next(calls))
    assert chance.count("repeat") == 20


def test_check_finds_unstable_and_overlapping_tasks():
    class Unstable:
        calls = 0

        def train(self, index):
            self.calls += 1
            return Task(f"{index}", (envs.user(f"{self.calls}"),), "a")

        def held_out(self, n):
            if n > 2:
                raise ValueError("only 2")
            return [Task("h", (envs.user("3"),), "a"), Task("h2", (envs.user("x"),), "a")][:n]

    reward = lambda completion, answer: completion == answer  # noqa: E731
    report = envs.check(envs.SingleTurn("unstable", Unstable(), reward), 8)
    assert (report.tasks, report.count("repeat"), report.count("split")) == (10, 8, 1)


def test_check_counts_an_environment_that_raises_or_hangs():
    class Raises(Twice):
        def step(self, message):
            raise KeyError("gone")

    class Hangs(Twice):
        async def step(self, message):
            await asyncio.sleep(30)

    tasks = envs.generated(number)
    raised = envs.check(Episodes("raises", tasks, Raises), 1)
    assert len(raised.failures) == 6
    assert "KeyError" in raised.failures[0].seen
    hung = envs.check(Episodes("hangs", tasks, Hangs), 1, timeout_s=0.05)
    assert len(hung.failures) == 6
    assert "TimeoutError" in hung.failures[0].seen


def test_check_works_inside_an_event_loop():
    async def run():
        return check_with(lambda completion, answer: completion == answer)

    assert asyncio.run(run()).ok


def play(env, task, *answers):
    """One episode; every Step."""

    async def run():
        messages = [await env.start(task, seed=0)]
        steps = [await env.step({"role": "assistant", "content": a}) for a in answers]
        await env.close()
        return messages[0], steps

    return asyncio.run(run())


def test_single_turn_shows_the_reward_the_whole_conversation():
    seen = {}

    def reward(prompt, completion, answer, messages, level):
        seen.update(prompt=prompt, completion=completion, messages=messages, level=level)
        return completion == answer

    rows = [{"prompt": "2+2", "answer": "4", "level": 7}]
    environment = envs.from_tasks(rows, reward=reward, system_prompt="Be brief", held_out_percent=0)
    shown, (step,) = play(environment.make(), environment.tasks.train(0), "4")
    system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "2+2"}
    assert shown == (system, user)
    assert step == Step(score=Score(1.0, Outcome.CORRECT), done=True)
    assert seen == {
        "prompt": "2+2",
        "completion": "4",
        "messages": (system, user, {"role": "assistant", "content": "4"}),
        "level": 7,
    }


def test_several_rewards_over_data():
    short = rewards.register("loading_test_short")(lambda completion: len(completion) < 3)
    environment = envs.from_tasks(
        ROWS, reward={lambda completion, answer: completion == answer: 1.0, short: 0.5}
    )
    task = environment.tasks.train(0)
    _, (step,) = play(environment.make(), task, task.answer)
    assert step.score.value == 1.0 + 0.5 * (len(task.answer) < 3)


@pytest.fixture
def second_try(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "2+2", "answer": "4"}\n')
    return envs.load(
        "second_try",
        inner=str(file),
        reward=lambda completion, answer: completion == answer,
        held_out_percent=0,
    )


def test_second_try_right_at_once(second_try):
    shown, (step,) = play(second_try.make(), second_try.tasks.train(0), "4")
    assert shown == ({"role": "user", "content": "2+2"},)
    assert (step.done, step.score.value, step.messages) == (True, 1.0, ())


def test_second_try_asks_again_once(second_try):
    _, (first, second) = play(second_try.make(), second_try.tasks.train(0), "5", "4")
    assert (first.done, first.score.value) == (False, 0.0)
    assert first.messages == ({"role": "user", "content": "That is not right. Try again."},)
    assert (second.done, second.score) == (True, Score(0.5, Outcome.CORRECT))
    _, (_, second) = play(second_try.make(), second_try.tasks.train(0), "5", "6")
    assert (second.done, second.score) == (True, Score(0.0, Outcome.WRONG))
    assert envs.check(second_try, 1).ok


def test_second_try_ends_when_a_try_could_not_be_judged(tmp_path):
    broken = envs.load("second_try", inner="second_try_inner_broken")
    _, (step,) = play(broken.make(), broken.tasks.train(0), "5")
    assert (step.done, step.score.value, step.score.outcome) == (True, None, Outcome.ERROR)


@envs.register("second_try_inner_broken")
def broken_inner():
    return envs.from_tasks(ROWS, reward=lambda: float("nan"))
