"""The endless stream of generated tasks."""

import random

import pytest

import envs
from envs import GeneratedTasks, Task, UsageError


def addition(rng: random.Random) -> Task:
    a, b = rng.randrange(1000), rng.randrange(1000)
    return Task(f"{a}+{b}", (envs.user(f"{a}+{b}="),), str(a + b))


def questions(tasks):
    return [envs.question_of(task.messages) for task in tasks]


def test_training_never_sees_a_held_out_question():
    tasks = envs.generated(addition)
    train = questions(tasks.train(i) for i in range(3000))
    aside = questions(tasks.held_out(100))
    assert not any(envs.held_out(q) for q in train)
    assert all(envs.held_out(q) for q in aside)
    assert len(set(aside)) == 100


def test_any_order_of_access_and_any_instance_gives_the_same_task():
    one, other = envs.generated(addition, seed=3), envs.generated(addition, seed=3)
    forward = [one.train(i) for i in range(300)]
    assert [other.train(i) for i in reversed(range(300))] == forward[::-1]
    assert one.train(10**9) == other.train(10**9)
    assert other.held_out(20) == one.held_out(50)[:20]


def test_seeds_differ_in_training_and_share_the_held_out_tasks():
    one, other = envs.generated(addition, seed=0), envs.generated(addition, seed=1)
    assert [one.train(i) for i in range(20)] != [other.train(i) for i in range(20)]
    assert one.held_out(20) == other.held_out(20)


def test_an_index_costs_about_one_candidate():
    made = []

    def make(stream, position):
        made.append((stream, position))
        return addition(random.Random(f"{stream}{position}"))

    tasks = GeneratedTasks(make)
    for i in range(1000, 2000):
        tasks.train(i)
    assert 1050 < len(made) < 1180  # 1 / (1 - 0.1) = 1.11 each, whatever the index


def test_positions_without_a_task_are_passed_over():
    def make(stream, position):
        if (position + len(stream)) % 2:
            return None
        return addition(random.Random(f"{stream}{position}"))

    tasks = GeneratedTasks(make)
    assert len(tasks.held_out(30)) == 30
    with pytest.raises(UsageError, match="no training task at 1"):
        GeneratedTasks(lambda stream, position: None).train(1)


def test_too_few_questions_is_an_error():
    few = envs.generated(lambda rng: Task("x", (envs.user(f"q{rng.randrange(40)}"),), "a"))
    n = len([i for i in range(40) if envs.held_out(f"q{i}")])
    assert len(few.held_out(n)) == n
    with pytest.raises(UsageError, match=f"only {n} distinct held-out tasks"):
        few.held_out(n + 1)


def test_bad_arguments():
    with pytest.raises(UsageError, match="held_out_percent must be from 0 to 99"):
        envs.generated(addition, held_out_percent=100)
    with pytest.raises(UsageError, match="nothing is held out"):
        envs.generated(addition, held_out_percent=0).held_out(1)
    with pytest.raises(ValueError, match="must not be negative"):
        envs.generated(addition).train(-1)
