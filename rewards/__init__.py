"""Rewards that can be trusted: usable on their own, and honest about what they could not judge.

``rewards.register`` and ``rewards.load`` name plain functions, ``rewards.apply`` runs one on a
sample under a deadline, ``rewards.combine`` makes one out of several. Start reading at
``rewards.registry`` for writing one, ``rewards.calling`` for what happens to what it returns.
"""

from rewards.calling import Case, apply
from rewards.combine import Combined, combine
from rewards.errors import UsageError, did_you_mean
from rewards.math import gsm8k
from rewards.registry import Reward, load, name_of, names, register, required_columns
from rewards.score import Outcome, Score
from rewards.threads import hung_threads

__all__ = [
    "Case",
    "Combined",
    "Outcome",
    "Reward",
    "Score",
    "UsageError",
    "apply",
    "combine",
    "did_you_mean",
    "gsm8k",
    "hung_threads",
    "load",
    "name_of",
    "names",
    "register",
    "required_columns",
]
