"""Names of rewards, and what their signatures ask for."""

import asyncio
import functools
import subprocess
import sys

import pytest

import rewards
from rewards import UsageError
from rewards.registry import check_row


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


# settings


def test_a_setting_is_an_argument_that_is_the_same_for_every_row():
    @rewards.register("registry_test_limit")
    def limit(completion, answer, at_most, unit="letters"):
        return len(completion) <= at_most

    assert rewards.required_columns(limit) == {"answer", "at_most"}
    short = rewards.load("registry_test_limit", at_most=3)
    assert rewards.required_columns(short) == {"answer"}
    assert judged(short, "abc").value == 1.0
    assert judged(short, "abcd").value == 0.0
    assert judged(short, "abcd", at_most=9).value == 0.0  # the row does not replace the setting
    assert rewards.load("registry_test_limit") is limit


def test_no_column_fills_what_is_a_setting_only():
    @rewards.register("registry_test_setting", settings=["n"])
    def long(completion, n=2):
        return len(completion) >= n

    assert judged(long, "ab", n=5).value == 1.0
    assert judged(rewards.load("registry_test_setting", n=3), "ab", n=1).value == 0.0
    batched = rewards.register("registry_test_batch", batch=True, settings=["n"])(
        lambda completion, n=2: [len(text) >= n for text in completion]
    )
    assert judged(batched, "ab", n=5).value == 1.0
    assert judged(rewards.load("registry_test_batch", n=3), "ab", n=1).value == 0.0


def test_settings_can_be_written_in_the_name_which_names_the_reward():
    text = "regex(pattern='^a+$', whole=True)"
    reward = rewards.load(text)
    assert rewards.name_of(reward) == text
    assert judged(reward, "aaa").value == 1.0
    assert rewards.name_of(rewards.load("regex", pattern="^a+$", whole=True)) == text


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        (
            "regex",
            {"patern": "x"},
            "reward 'regex' has no setting 'patern'. Did you mean 'pattern'",
        ),
        ("regex", {"completion": "x"}, "has no setting 'completion'"),
        ("regex", {"pattern": "("}, "the pattern '\\(' cannot be compiled"),
        ("regex(pattern=", {}, "cannot read 'regex\\(pattern='"),
        ("regex('x')", {}, "write it as name\\(setting=value\\)"),
        ("regex(pattern=__import__('os'))", {}, "with plain values"),
        ("os.system(command='x')", {}, "unknown reward 'os.system'"),
        ("regexx(pattern='x')", {}, "unknown reward 'regexx'. Did you mean 'regex'"),
        ("overlong", {"max_tokens": 4, "buffer": 8}, "needs 0 < buffer <= max_tokens"),
        (
            "cosine",
            {"max_tokens": 4},
            "missing a required argument: 'of'. Settings: of, max_tokens",
        ),
        ("cosine", {"of": "matth", "max_tokens": 4}, "unknown reward 'matth'"),
        (
            "cosine",
            {"of": "exact", "max_tokens": 0},
            "reward 'cosine': max_tokens must be at least",
        ),
        ("regex(pattern='x').y(", {}, "cannot read"),
        ("regex(**{'pattern': 'x'})", {}, "has no setting '\\*\\*'"),
    ],
)
def test_settings_that_cannot_be(name, settings, why):
    with pytest.raises(UsageError, match=why):
        rewards.load(name, **settings)


def test_a_factory_is_called_with_the_settings():
    @rewards.register("registry_test_factory", factory=True)
    def contains(word, times=1):
        def judge(completion):
            return completion.count(word) >= times

        return judge

    reward = rewards.load("registry_test_factory", word="a", times=2)
    assert judged(reward, "aa").value == 1.0
    assert rewards.name_of(reward) == "registry_test_factory(word='a', times=2)"
    assert rewards.required_columns(reward) == frozenset()
    with pytest.raises(UsageError, match="missing a required argument: 'word'"):
        rewards.load("registry_test_factory")


# rewards that come with the package


def test_a_built_in_name_cannot_be_taken():
    with pytest.raises(UsageError, match="reward 'exact' is already registered, by rewards.match"):
        rewards.register("exact")(lambda completion: 1.0)


def test_built_in_rewards_are_imported_when_they_are_loaded():
    code = (
        "import sys, rewards\n"
        "heavy = ['rewards.matching', 'rewards.instructions', 'rapidfuzz', 'regex',\n"
        "         'jsonschema_rs', 'py3langid', 'tokenizers', 'sympy', 'torch']\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "rewards.load('exact')\n"
        "print('rewards.matching' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "True"], done.stderr


# rows


def test_a_reward_without_a_check_accepts_any_row():
    check_row(lambda completion: 1.0, {"answer": ""})


def test_a_row_is_checked_together_with_the_settings():
    with pytest.raises(UsageError, match="reward 'ifeval': 1 instructions and 0 kwargs"):
        check_row(rewards.load("ifeval"), {"instruction_id_list": ["a"], "kwargs": []})
    fixed = rewards.load("regex", pattern="x")
    check_row(fixed, {"pattern": "("})  # the setting counts, not the column


def judged(reward, completion, answer="x", **columns):
    case = rewards.Case("p", completion, answer, (), columns)
    return asyncio.run(rewards.apply(reward, case, timeout_s=5))
