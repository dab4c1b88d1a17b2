"""Presets name what exists, say where it is from, and never override the user."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from posttrain.advantages import ADVANTAGES
from posttrain.config import make_config
from posttrain.corrections import CORRECTIONS
from posttrain.errors import UsageError
from posttrain.losses import AGGREGATIONS, KLS, LOSSES
from posttrain.presets import PRESETS, apply_preset, explain

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = {
    "algorithm.advantage": ADVANTAGES,
    "algorithm.loss": LOSSES,
    "algorithm.correction": CORRECTIONS,
    "algorithm.kl": KLS,
    "algorithm.aggregation": AGGREGATIONS,
}


def test_the_presets() -> None:
    assert set(PRESETS) == {
        *("grpo", "dr_grpo", "dapo", "rloo", "reinforce", "reinforce++", "gspo", "cispo"),
        *("ppo", "remax", "expert_iteration", "distill", "online_dpo"),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_choice_of_a_preset_resolves(name) -> None:
    settings = PRESETS[name].settings
    for setting, registry in REGISTRIES.items():
        assert registry.resolve(settings[setting][0])
    assert all(where for _, where in settings.values())


def test_what_the_user_set_wins() -> None:
    tree = {
        "model": "m",
        "algorithm": {"preset": "dapo", "loss": {"high": 0.3}, "kl": "k3", "entropy_coef": 0.01},
        "grpo": {"max_refills": 1},
    }
    assert apply_preset(tree) == {
        "model": "m",
        "algorithm": {
            "preset": "dapo",
            "advantage": "grpo",
            "loss": {"name": "ppo_clip", "low": 0.2, "high": 0.3, "dual": 0.0},
            "correction": "none",
            "kl": "k3",
            "aggregation": "token",
            "entropy_coef": 0.01,
        },
        "grpo": {"max_refills": 1, "mask_truncated": True},
    }
    assert tree["grpo"] == {"max_refills": 1}, "the user's tree is left as it was"


DAPO_OFF = {
    "grpo.max_refills": 0,  # dynamic sampling
    "grpo.mask_truncated": False,  # overlong filtering
    "algorithm.aggregation": "sequence",  # the token-level loss
    "algorithm.loss": {"name": "ppo_clip", "low": 0.2, "high": 0.2, "dual": 0.0},  # clip-higher
}


@pytest.mark.parametrize("part", DAPO_OFF)
def test_each_part_of_dapo_is_off_alone_and_on_alone(part) -> None:
    """The fifth, overlong reward shaping, is the reward ``overlong``."""

    def setting(tree: dict, name: str):
        config = make_config({"model": "m", "env": "e"} | tree)
        section, _, key = name.partition(".")
        return getattr(getattr(config, section), key)

    section, _, key = part.partition(".")
    preset = {"algorithm": {"preset": "dapo"}}
    tree = {**preset, section: {**preset.get(section, {}), key: DAPO_OFF[part]}}
    on = {name: value for name, (value, _) in PRESETS["dapo"].settings.items()}
    for name in DAPO_OFF:
        expected = DAPO_OFF[part] if name == part else on[name]
        assert setting(tree, name) == expected, name
    alone = {section: {key: on[part]}}
    assert setting(alone, part) == on[part]
    defaults = {name: setting({}, name) for name in DAPO_OFF if name != part}
    assert {name: setting(alone, name) for name in defaults} == defaults


def test_another_function_gets_none_of_the_presets_settings() -> None:
    other = {"name": "cispo", "high": 3.0}
    filled = apply_preset({"algorithm": {"preset": "dapo", "loss": other}})
    assert filled["algorithm"]["loss"] == other
    same = apply_preset({"algorithm": {"preset": "ppo", "advantage": {"name": "gae", "lam": 1.0}}})
    assert same["algorithm"]["advantage"] == {"name": "gae", "gamma": 1.0, "lam": 1.0}
    plain = apply_preset({"algorithm": {"preset": "rloo", "advantage": {"name": "rloo"}}})
    assert plain["algorithm"]["advantage"] == {"name": "rloo"}


@pytest.mark.parametrize("tree", [{}, {"algorithm": {}}, {"algorithm": {"preset": ""}, "seed": 1}])
def test_no_preset_changes_nothing(tree) -> None:
    assert apply_preset(tree) == tree


def test_a_wrong_tree_is_left_for_the_config_to_refuse() -> None:
    assert apply_preset({"algorithm": 3}) == {"algorithm": 3}
    assert apply_preset({"algorithm": {"preset": "dapo"}, "grpo": 3})["grpo"] == 3


def test_a_misspelt_preset() -> None:
    with pytest.raises(UsageError, match=r"unknown algorithm.preset 'dpo'. Did you mean .*'dapo'"):
        apply_preset({"algorithm": {"preset": "dpo"}})


def test_a_preset_says_what_it_sets_and_why() -> None:
    title, *lines = explain("dapo")
    assert title == "DAPO, arXiv:2503.14476"
    assert len(lines) == len(PRESETS["dapo"].settings)
    assert (
        "algorithm.loss = ppo_clip(low=0.2, high=0.28, dual=0.0)   section 3.1, clip-higher"
        in lines
    )
    assert any(line.startswith("grpo.mask_truncated = True  ") for line in lines)


def test_the_settings_in_the_docs_are_what_they_say() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    tree = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    filled = apply_preset(tree)["algorithm"]
    assert filled["loss"] == {"name": "ppo_clip", "low": 0.2, "high": 0.3, "dual": 0.0}
    assert CORRECTIONS.resolve(filled["correction"]).arguments == {"cap": 2.0}
    assert apply_preset(apply_preset(tree)) == apply_preset(tree)
