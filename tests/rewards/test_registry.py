"""Names of rewards, and what their signatures ask for."""

import functools

import pytest

import rewards
from rewards import UsageError


def test_register_and_load_give_the_function_back():
    @rewards.register("registry_test_a")
    def reward(completion):
        return 1.0

    assert rewards.load("registry_test_a") is reward
    assert "registry_test_a" in rewards.names()
    assert rewards.name_of(reward) == "registry_test_a"


def test_unknown_name_says_the_nearest():
    with pytest.raises(UsageError, match="unknown reward 'gsm8'. Did you mean 'gsm8k'"):
        rewards.load("gsm8")


def test_a_name_is_held_by_one_function_but_its_cell_may_run_again():
    def make():
        def reward(completion):
            return 1.0

        return reward

    def other(completion):
        return 0.0

    rewards.register("registry_test_b")(make())
    rewards.register("registry_test_b")(make())
    with pytest.raises(UsageError, match="already registered"):
        rewards.register("registry_test_b")(other)


def test_register_without_parentheses_or_name():
    with pytest.raises(UsageError, match="a reward needs a name"):
        rewards.register("")
    with pytest.raises(UsageError, match="a reward needs a name"):
        rewards.register(lambda completion: 1.0)  # type: ignore[arg-type]


def test_required_columns():
    def plain(prompt, completion, answer, **columns): ...
    def picky(completion, difficulty, hint="none", *, source): ...
    def nothing(): ...

    class Callable:
        def __call__(self, messages, unit): ...

    assert rewards.required_columns(plain) == {"answer"}
    assert rewards.required_columns(picky) == {"difficulty", "source"}
    assert rewards.required_columns(nothing) == frozenset()
    assert rewards.required_columns(Callable()) == {"unit"}
    bound = functools.partial(picky, difficulty=3)
    assert rewards.required_columns(bound) == {"source"}


def test_what_is_no_reward():
    with pytest.raises(UsageError, match="a reward is a function"):
        rewards.required_columns(0.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="by position only"):
        rewards.required_columns(lambda completion, /: 1.0)
