"""How an algorithm is named, configured, and found again in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from posttrain.advantages import ADVANTAGES, grpo
from posttrain.corrections import CORRECTIONS
from posttrain.errors import UsageError
from posttrain.losses import AGGREGATIONS, KLS, LOSSES, LossParts, TokenTensors, policy_loss
from posttrain.presets import PRESETS
from posttrain.registry import Count, Registry, Share, choice_of

ROOT = Path(__file__).resolve().parents[2]

THINGS: Registry = Registry("thing")


@pytest.fixture(autouse=True)
def _as_they_were(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (ADVANTAGES, LOSSES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@THINGS.register("shout", needs=("voice",))
def shout(text, *, times: Count = 1, share: Share = 0.5, end="!", loud: bool = False):
    """Say it loudly.

    And this is not in the table.
    """
    return text.upper() * times + end


@THINGS.register("pick")
def pick(*, how: Literal["first", "last"] = "first"):
    return how


def test_a_name_alone_has_its_defaults() -> None:
    bound = THINGS.resolve("shout")
    assert bound.arguments == {"times": 1, "share": 0.5, "end": "!", "loud": False}
    assert bound.needs == {"voice"}
    assert bound("ab") == "AB!"
    assert str(bound) == "shout(times=1, share=0.5, end='!', loud=False)"


def test_settings_are_bound() -> None:
    assert THINGS.resolve({"name": "shout", "times": 2, "end": "?"})("ab") == "ABAB?"
    assert THINGS.resolve({"name": "shout", "share": 1}).arguments["share"] == 1.0


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("shuot", r"unknown thing 'shuot'. Did you mean 'shout'\?"),
        ({"name": "shout", "tmies": 2}, r"no setting 'tmies'; its settings: times, share, end, l"),
        ({"name": "shout", "times": "2"}, r"thing 'shout': times = '2': .*valid integer"),
        ({"name": "shout", "times": 0}, r"times = 0: .*greater than or equal to 1"),
        ({"name": "shout", "times": 1.5}, r"times = 1.5"),
        ({"name": "shout", "share": True}, r"share = True"),
        ({"name": "shout", "share": float("nan")}, r"share = nan"),
        ({"name": "shout", "end": 3}, r"end = 3: .*valid string"),
        ({"name": "shout", "loud": 1}, r"loud = 1: .*valid boolean"),
        ({"name": "pick", "how": "middle"}, r"how = 'middle': .*'first' or 'last'"),
        ({"times": 2}, r"a thing is a name or"),
        (3, r"a thing is a name or"),
        ("no_such_package.there:f", r"no module 'no_such_package.there'"),
        (":f", r"'' is no module"),
        ("posttrain.advantages:grop", r"posttrain.advantages has no function 'grop'. Did .*'grpo'"),
        ("no/such/file.py:f", r"there is no file .*no/such/file.py"),
    ],
)
def test_a_choice_that_cannot_be(choice, message) -> None:
    with pytest.raises(UsageError, match=message):
        THINGS.resolve(choice)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        THINGS.resolve({"name": "shout", "times": 0, "share": 2.0, "tmies": 1})
    assert len(str(caught.value).splitlines()) == 3


def test_a_function_by_reference() -> None:
    bound = ADVANTAGES.resolve({"name": "posttrain.advantages:pass_at_k", "k": 2})
    assert bound.arguments == {"k": 2, "std": True}
    assert ADVANTAGES.resolve("posttrain.advantages:gae").needs == {"tokens", "values"}


def test_a_function_of_a_file(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from posttrain.advantages import ADVANTAGES, StepRewards, per_group\n"
        "@dataclass\n"
        "class Best:\n"
        "    value: float\n"
        "@ADVANTAGES.register('mine_of_a_test', needs=('lengths',))\n"
        "@per_group\n"
        "def mine(rewards_G, *, bonus: float = 1.0):\n"
        "    best = Best(max(rewards_G))\n"
        "    return [bonus * (r == best.value) for r in rewards_G]\n"
        "limit = 3\n"
    )
    from posttrain.advantages import StepRewards

    bound = ADVANTAGES.resolve({"name": f"{file}:mine", "bonus": 2.0})
    assert bound(StepRewards(((1.0, 0.0),))) == [[2.0, 0.0]]
    assert bound.needs == {"lengths"}
    # registered by its file: known by its name here, and found by its file anywhere
    assert ADVANTAGES.resolve("mine_of_a_test").function is bound.function
    assert ADVANTAGES.resolve("mine_of_a_test").choice == {"name": f"{file}:mine", "bonus": 1.0}
    with pytest.raises(UsageError, match="has no function 'limit'"):
        ADVANTAGES.resolve(f"{file}:limit")


def test_a_file_that_fails_can_be_loaded_again_when_it_is_mended(tmp_path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(RuntimeError, match="not yet"):
        THINGS.resolve(f"{file}:f")
    file.write_text("def f(): return 3\n")
    assert THINGS.resolve(f"{file}:f")() == 3


def test_what_a_module_misses_is_told_as_it_is(tmp_path, monkeypatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        THINGS.resolve("needs_more:f")


SCRIPT = """
import json, sys
from posttrain.advantages import ADVANTAGES, per_group

@ADVANTAGES.register("best_only")
@per_group
def best_only(rewards_G, *, bonus: float = 1.0):
    return [bonus * (r == max(rewards_G)) for r in rewards_G]

if __name__ == "__main__":
    bound = ADVANTAGES.resolve({"name": "best_only", "bonus": 2.0})
    again = ADVANTAGES.resolve(bound.choice)  # as the learner does, here in the same process
    print(json.dumps([bound.choice, again.choice, again.function is bound.function]))
"""


def test_a_function_of_a_script_is_found_by_another_process(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    choice, again, same = json.loads(found.stdout)
    assert choice == {"name": f"{script}:best_only", "bonus": 2.0}
    assert again == choice
    assert not same, "the file is executed once more, under a name of its own"
    from posttrain.advantages import StepRewards

    assert ADVANTAGES.resolve(choice)(StepRewards(((0.0, 1.0),))) == [[0.0, 2.0]]


def test_a_built_in_goes_by_its_name() -> None:
    assert LOSSES.resolve({"name": "ppo_clip", "high": 0.3}).choice == {
        "name": "ppo_clip",
        "low": 0.2,
        "high": 0.3,
        "dual": 0.0,
    }
    assert choice_of(grpo) == "posttrain.advantages:grpo"


def test_what_has_no_place_cannot_be_referred_to() -> None:
    def inside():
        return None

    for function in (inside, lambda: None):
        with pytest.raises(UsageError, match="define it at the top of a module"):
            choice_of(function)
    inside.__qualname__, inside.__module__ = "inside", "typed_in"
    with pytest.raises(UsageError, match="is in no file"):
        choice_of(inside)


def test_a_name_is_taken_once() -> None:
    def other(text):
        return text

    with pytest.raises(UsageError, match=r"thing 'shout' is already registered, by .*shout"):
        THINGS.register("shout")(other)
    assert THINGS.register("shout", needs=("voice",))(shout) is shout  # a cell run again


def test_a_registration_that_cannot_be() -> None:
    def needy(text, *, times: int):
        return text * times

    def misspelt(text, *, times: Cuont = 1):  # noqa: F821
        return text * times

    with pytest.raises(UsageError, match="'times' of 'needy' needs a default"):
        THINGS.register("needy")(needy)
    with pytest.raises(UsageError, match="annotation of setting 'times'.*Cuont"):
        THINGS.register("misspelt")(misspelt)
    with pytest.raises(UsageError, match="needs="):
        THINGS.register("text", needs="voice")
    assert set(THINGS) == {"pick", "shout"}
    assert "shout" in THINGS and "needy" not in THINGS and len(THINGS) == 2


def test_the_table() -> None:
    assert THINGS.describe() == [
        ("pick", "how='first'", ""),
        ("shout", "times=1, share=0.5, end='!', loud=False", "Say it loudly."),
    ]


def test_docs_algorithms_has_every_name_and_setting() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    missing = [f"preset `{name}`" for name in PRESETS if f"`{name}`" not in text]
    for registry in (ADVANTAGES, LOSSES, CORRECTIONS, KLS, AGGREGATIONS):
        for name in registry:
            words = (name, *registry.resolve(name).arguments)
            missing += [f"{registry.kind} {name}: `{w}`" for w in words if f"`{w}`" not in text]
    assert not missing, "\n".join(missing)


def test_the_example_in_the_docs_works(tmp_path) -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    file = tmp_path / "own.py"
    file.write_text(text.partition("```python\n")[2].partition("```")[0])
    assert len(file.read_text().splitlines()) <= 30
    from posttrain.advantages import StepRewards

    advantage = ADVANTAGES.resolve({"name": f"{file}:best_of_group", "others": 0.0})
    assert advantage(StepRewards(((0.2, None, 0.7),))) == [[0.0, None, 1.0]]
    with pytest.raises(UsageError, match="width = 0"):
        LOSSES.resolve({"name": f"{file}:soft_clip", "width": 0.0})
    # ratio exp(0.1) = 1.105171: -0.3 tanh(0.105171 / 0.3) = -0.3 * 0.336881
    row = torch.tensor([-0.9]).requires_grad_()
    one = torch.ones(1)
    batch = TokenTensors(row, -one, one, one.bool(), torch.zeros(1, dtype=torch.int64), 1)
    loss, metrics = policy_loss(batch, LossParts(loss=LOSSES.resolve(f"{file}:soft_clip")))
    assert loss.item() == pytest.approx(-0.101064, abs=1e-6)
    assert metrics["moved"].item() == pytest.approx(0.101064, abs=1e-6)
