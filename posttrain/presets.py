"""Presets: the settings that make a published algorithm, with the place each value is from.

A preset fills what the user has not set, in any section of the config. What it filled is kept with
the run as plain values, so filling it again changes nothing. ``explain`` says what it sets.

Where a paper's value has no counterpart in this loop, ``docs/algorithms.md`` says what is
different. No learning rate, batch size or length is preset: those belong to the model and the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UsageError
from rewards.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Preset:
    """``settings``: dotted name -> (value, where it is from: a place in the paper of the title)."""

    title: str
    settings: Mapping[str, tuple[Any, str]]


Rows = dict[str, tuple[Any, str]]

_ACTION = "a sequence is one action: a sum over its tokens, up to a constant"
_NO_KL = ("none", "left out")
_KL_BY_TASK = ("none", "the paper's is k1 in the reward, with a coefficient for each task: add it")


def _rows(advantage: Any, loss: Any, kl: Any, aggregation: Any, correction: Any) -> Rows:
    """The five choices of every preset, each with its source."""
    return {
        "algorithm.advantage": advantage,
        "algorithm.loss": loss,
        "algorithm.correction": correction,
        "algorithm.kl": kl,
        "algorithm.aggregation": aggregation,
    }


def _clip(low: float, high: float) -> dict[str, Any]:
    return {"name": "ppo_clip", "low": low, "high": high, "dual": 0.0}


_PPO_CLIP = (_clip(0.2, 0.2), "the clip of PPO, arXiv:1707.06347, section 6.1; no value of its own")
_AGAINST_ENGINE = ("none", "the loss's ratio is against the engine")
_ON_POLICY = ("none", "on-policy; choose one where grpo.max_lag > 0")

PRESETS: dict[str, Preset] = {
    "grpo": Preset(
        "GRPO, arXiv:2402.03300",
        _rows(
            ("grpo", "section 4.1.2, outcome supervision"),
            _PPO_CLIP,
            ({"name": "k3", "coef": 0.04, "place": "loss"}, "eq. 4; section 4.2"),
            ("sequence", "eq. 3, 1/|o_i|"),
            _AGAINST_ENGINE,
        ),
    ),
    "dr_grpo": Preset(
        "Dr.GRPO, arXiv:2503.20783",
        _rows(
            ("dr_grpo", "section 3.2, no standard deviation"),
            _PPO_CLIP,
            _NO_KL,
            ("fixed", "section 3.2, a constant for 1/|o_i|"),
            _AGAINST_ENGINE,
        ),
    ),
    "dapo": Preset(
        "DAPO, arXiv:2503.14476",
        _rows(
            ("grpo", "eq. 9"),
            (_clip(0.2, 0.28), "section 3.1, clip-higher"),
            ("none", "section 2.3"),
            ("token", "section 3.3, token-level loss"),
            _AGAINST_ENGINE,
        )
        | {
            "grpo.max_refills": (4, "section 3.2, dynamic sampling; the bound is ours"),
            "grpo.mask_truncated": (True, "section 3.4, overlong filtering"),
        },
    ),
    "rloo": Preset(
        "RLOO, arXiv:2402.14740",
        _rows(
            ("rloo", "leave one out"),
            ("reinforce", "no clipping"),
            _KL_BY_TASK,
            ("fixed", _ACTION),
            _ON_POLICY,
        ),
    ),
    "reinforce": Preset(
        "REINFORCE, Williams 1992",
        _rows(
            ({"name": "reinforce", "baseline": "batch"}, "a baseline that no sample chooses"),
            ("reinforce", "the score function"),
            _NO_KL,
            ("fixed", _ACTION),
            _ON_POLICY,
        ),
    ),
    "reinforce++": Preset(
        "REINFORCE++, arXiv:2501.03262",
        _rows(
            ("reinforce++", "global normalisation"),
            _PPO_CLIP,
            ({"name": "k1", "coef": 0.01, "place": "reward"}, "the default of OpenRLHF"),
            ("token", "a mean over tokens"),
            _AGAINST_ENGINE,
        ),
    ),
    "gspo": Preset(
        "GSPO, arXiv:2507.18071",
        _rows(
            ("grpo", "eq. 6"),
            ({"name": "gspo", "low": 3e-4, "high": 4e-4}, "eq. 5 and 7; section 5.1"),
            _NO_KL,
            ("sequence", "eq. 5, 1/G over sequences"),
            (
                {"name": "tis", "cap": 2.0},
                "ours: so tight a clip is meant against the learner, not the engine",
            ),
        ),
    ),
    "cispo": Preset(
        "CISPO, arXiv:2506.13585",
        _rows(
            ("grpo", "group-relative"),
            (
                {"name": "cispo", "low": 1.0, "high": 4.0},
                "eq. 4 and 5, no lower bound; the upper one is not published, this is ours",
            ),
            _NO_KL,
            ("token", "eq. 4, 1 / sum |o_i|"),
            _AGAINST_ENGINE,
        ),
    ),
    "ppo": Preset(
        "PPO for language models, arXiv:2203.02155",
        _rows(
            (
                {"name": "gae", "gamma": 1.0, "lam": 0.95},
                "no discount, appendix C.4; lam of PPO, arXiv:1707.06347, table 3",
            ),
            (_clip(0.2, 0.2), "appendix C.4"),
            ({"name": "k1", "coef": 0.02, "place": "reward"}, "appendix C.4"),
            ("token", "a mean over tokens"),
            _AGAINST_ENGINE,
        ),
    ),
    "remax": Preset(
        "ReMax, arXiv:2310.10505",
        _rows(
            ("remax", "the greedy answer as the baseline"),
            ("reinforce", "no clipping"),
            _KL_BY_TASK,
            ("fixed", _ACTION),
            _ON_POLICY,
        ),
    ),
    "online_dpo": Preset(
        "Online DPO, arXiv:2402.04792",
        _rows(
            (
                {"name": "online_dpo", "beta": 0.1},
                "eq. 1; best against worst is ours",
            ),
            ("reinforce", "the pair loss's gradient, through the advantages"),
            ("none", "the reference is in the pair loss"),
            ("fixed", "a sequence's log-prob is a sum over its tokens, up to a constant"),
            ("none", "on-policy: the pair's weight is the learner's own"),
        ),
    ),
    "expert_iteration": Preset(
        "Rejection-sampling fine-tuning, arXiv:2308.01825",
        _rows(
            (
                {"name": "rejection", "threshold": 1.0, "keep": 0},
                "every right answer; keep = n takes the n shortest",
            ),
            ("sft", "likelihood of what was kept"),
            _NO_KL,
            ("token", "a mean over tokens"),
            ("none", "no ratio: the samples are data"),
        ),
    ),
    "distill": Preset(
        "On-policy distillation, arXiv:2306.13649",
        _rows(
            ({"name": "distill", "clip": 10.0}, "reverse KL; the clip is ours"),
            ("reinforce", "the score function, arXiv:2306.08543"),
            _NO_KL,
            ("token", "a mean over tokens"),
            _ON_POLICY,
        ),
    ),
}


def apply_preset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config tree with what ``algorithm.preset`` fills in; what the user set wins.

    A choice the user gave settings of, ``algorithm.loss.high = 0.3``, keeps the preset's name and
    other settings unless it names another function. Raises UsageError for an unknown preset.
    """
    filled = {key: dict(v) if isinstance(v, Mapping) else v for key, v in tree.items()}
    algorithm = filled.get("algorithm")
    name = algorithm.get("preset") if isinstance(algorithm, dict) else None
    if not name or not isinstance(name, str):
        return filled
    for setting, (value, _) in _preset(name).settings.items():
        section_name, _, key = setting.partition(".")
        section = filled.setdefault(section_name, {})
        if isinstance(section, dict):  # else it is told as the wrong type it is
            section[key] = _merged(value, section[key]) if key in section else value
    return filled


def explain(name: str) -> list[str]:
    """The paper, then a line for each setting: its name, its value, where that is from."""
    preset = _preset(name)
    rows = [
        (f"{setting} = {_written(value)}", where)
        for setting, (value, where) in preset.settings.items()
    ]
    width = max(len(left) for left, _ in rows)
    return [preset.title, *(f"{left:<{width}}   {where}" for left, where in rows)]


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"unknown algorithm.preset {name!r}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def _merged(preset: Any, own: Any) -> Any:
    """The user's choice, with the preset's settings where both mean the same function."""
    if not isinstance(own, Mapping):
        return own
    base = {"name": preset} if isinstance(preset, str) else preset
    if not isinstance(base, Mapping) or own.get("name", base["name"]) != base["name"]:
        return dict(own)
    return {**base, **own}


def _written(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    settings = ", ".join(f"{key}={v!r}" for key, v in value.items() if key != "name")
    return f"{value['name']}({settings})"
