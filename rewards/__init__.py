"""Rewards that can be trusted: usable on their own, and honest about what they could not judge.

``rewards.register`` and ``rewards.load`` name plain functions, ``rewards.apply`` runs one on a
sample under a deadline, ``rewards.combine`` makes one out of several. Start reading at
``rewards.registry`` for writing one, ``rewards.calling`` for what happens to what it returns.

``rewards.math``, ``code``, ``sandbox``, ``model`` and ``judge`` are imported when first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rewards.batched import Batched
from rewards.calling import Case, CaseReward, apply
from rewards.combine import Combined, combine
from rewards.errors import UsageError, did_you_mean
from rewards.registry import (
    Reward,
    check_row,
    load,
    name_of,
    names,
    register,
    required_columns,
)
from rewards.score import Outcome, Score
from rewards.threads import hung_threads

if TYPE_CHECKING:
    from rewards import code, judge, math, model, sandbox
    from rewards.math import gsm8k

__all__ = [
    "Batched",
    "Case",
    "CaseReward",
    "Combined",
    "Outcome",
    "Reward",
    "Score",
    "UsageError",
    "apply",
    "check_row",
    "code",
    "combine",
    "did_you_mean",
    "gsm8k",
    "hung_threads",
    "judge",
    "load",
    "math",
    "model",
    "name_of",
    "names",
    "register",
    "required_columns",
    "sandbox",
]

_LATER = ("code", "judge", "math", "model", "sandbox")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"rewards.{name}")
    if name == "gsm8k":
        return importlib.import_module("rewards.math").gsm8k
    raise AttributeError(f"module 'rewards' has no attribute {name!r}")
