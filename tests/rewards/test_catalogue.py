"""docs/rewards.md names every reward that comes with the package, as it is."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import rewards
from rewards.instructions import KINDS
from rewards.registry import BUILT_IN, required_columns

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text()
NEED_A_SERVER = {"judge": "load", "reward_model": "load", "process_reward_model": "load_process"}
WORD = re.compile(r"`([\w:]+)`")
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)[1:])] * 2, strict=True))


def rows(section):
    """The cells of a section's table, keyed by the name in the first."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    return {WORD.findall(line)[0]: [c.strip() for c in line.split("|")[2:-1]] for line in lines}


def test_every_built_in_reward_is_in_the_catalogue():
    assert set(rows("Catalogue")) == set(BUILT_IN)


def test_every_built_in_reward_says_how_it_can_be_hacked():
    bullets = re.findall(r"^- (.+?):", SECTIONS["How they can be hacked"], flags=re.MULTILINE)
    assert {name for bullet in bullets for name in WORD.findall(bullet)} == set(BUILT_IN)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_columns_and_settings_are_those_of_the_function(name):
    columns, settings, _ = rows("Catalogue")[name]
    if name in NEED_A_SERVER:
        return
    if name == "cosine":  # a factory: every argument is a setting
        made = inspect.signature(type(rewards.load("cosine", of="exact", max_tokens=2)))
        assert WORD.findall(settings) == list(made.parameters)
        return
    reward = rewards.load(name)
    assert set(WORD.findall(columns.partition("(")[0])) == required_columns(reward)
    assert set(WORD.findall(settings)) == set(getattr(reward, "settings", ()))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_reward_has_a_docstring(name):
    if name in NEED_A_SERVER:
        reward = getattr(importlib.import_module(BUILT_IN[name]), NEED_A_SERVER[name])
    else:
        given = {"of": "exact", "max_tokens": 2} if name == "cosine" else {}
        reward = rewards.load(name, **given)
    assert len(inspect.getdoc(reward) or "") > 40


def test_every_instruction_is_in_the_table():
    table = {name: WORD.findall(cells[0]) for name, cells in rows("Instructions").items()}
    found = {name: [*inspect.signature(verify).parameters][1:] for name, verify in KINDS.items()}
    assert table == found


def test_the_examples_of_the_page_run(tmp_path):
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    example = code[0].replace("path/to/checkpoint", str(tmp_path / "tokenizer.json"))
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    scope = {}
    exec(example, scope)
    assert scope["reward"].name.startswith("format+math+overlong(max_tokens=4096, buffer=512")
    exec(code[1], {"rewards": rewards})
    assert rewards.load("ends_with(ending='.')")("a.") is True
